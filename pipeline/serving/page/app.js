const $ = (id) => document.getElementById(id);
const records = document.body.dataset.records === "true", feedback = document.body.dataset.feedback === "true";
const ABOUT = $("about").textContent;
// Fields of the settings, and of a request: [id, name in the request, how it is written].
const NUMBERS = [["temperature", "temperature"], ["top-p", "top_p"], ["top-k", "top_k"], ["min-p", "min_p"], ["max-tokens", "max_tokens"],
  ["min-tokens", "min_tokens"], ["frequency-penalty", "frequency_penalty"], ["presence-penalty", "presence_penalty"],
  ["repetition-penalty", "repetition_penalty"], ["seed", "seed"]];
const TEXTS = ["system", "stop-strings", "reasoning", "schema", "tools", "key"];
const CHECKS = ["probabilities", "blind", "consent"];
const FIELDS = [...NUMBERS.map(([id]) => id), ...TEXTS];
const MOST_CONVERSATIONS = 200;

let models = [];          // names that the server has
let talk = fresh();       // the conversation that is shown
let stopping = null;      // AbortController of the requests in progress
let locked = false;       // the server requires a key, or another one

// Settings and the key stay in this tab: sessionStorage ends with it. Conversations stay in the browser.
const store = { get: (name) => sessionStorage.getItem("chat." + name) ?? "", set: (name, value) => sessionStorage.setItem("chat." + name, value) };
const on = (name) => store.get(name) === "yes";
const headers = () => {
  const all = { "Content-Type": "application/json" };
  if (store.get("key")) all.Authorization = "Bearer " + store.get("key");
  if ((records || feedback) && on("consent")) all["X-Record-Consent"] = "yes";
  return all;
};
const chosen = () => [...new Set([store.get("model"), store.get("compare")])].filter((name) => models.includes(name));

/* Elements */

const ICONS = {
  add: ["M10 4v12M4 10h12"],
  menu: ["M3 5h14M3 10h14M3 15h9"],
  code: ["m7 6-4 4 4 4M13 6l4 4-4 4"],
  settings: ["M3 6h7M14 6h3M3 14h3M10 14h7", "M14 6a2 2 0 1 1-4 0 2 2 0 0 1 4 0Z", "M10 14a2 2 0 1 1-4 0 2 2 0 0 1 4 0Z"],
  theme: ["M16.5 10a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0Z", "solid M10 3.5a6.5 6.5 0 0 1 0 13z"],
  copy: ["M9 7h5a2 2 0 0 1 2 2v5a2 2 0 0 1-2 2H9a2 2 0 0 1-2-2V9a2 2 0 0 1 2-2Z", "M13 4.5A1.5 1.5 0 0 0 11.5 3H5.5A2.5 2.5 0 0 0 3 5.5v6A1.5 1.5 0 0 0 4.5 13"],
  done: ["m4.5 10.5 3.5 3.5 7.5-8"],
  again: ["M16 10a6 6 0 1 1-1.8-4.2", "M16.5 3v3.5H13"],
  edit: ["m4 16 .8-3.2L13 4.6a1.6 1.6 0 0 1 2.4 2.4L7.2 15.2 4 16Z"],
  good: ["M6.5 9 9.6 3.4c1 .1 1.7 1 1.5 2L10.6 8H15a1.5 1.5 0 0 1 1.5 1.8l-1 5A1.5 1.5 0 0 1 14 16H6.5V9Z", "M3.5 9h3v7h-3z"],
  bad: ["M13.5 11l-3.1 5.6c-1-.1-1.7-1-1.5-2l.5-2.6H5a1.5 1.5 0 0 1-1.5-1.8l1-5A1.5 1.5 0 0 1 6 4h7.5v7Z", "M13.5 4h3v7h-3z"],
  correct: ["M4 5h12M4 9h7M4 13h4", "m10.5 16 .6-2.2 4.3-4.3a1.1 1.1 0 0 1 1.6 1.6l-4.3 4.3-2.2.6Z"],
  tokens: ["M4 16V9M8 16V5M12 16v-8M16 16v-4"],
  remove: ["M5 6h10M8 6V4h4v2M6.5 6l.6 10h5.8l.6-10"],
  save: ["M10 3v9M6.5 9 10 12.5 13.5 9M4 16h12"],
};

function sign(name) {
  const svg = $("sign").content.firstElementChild.cloneNode();
  for (const line of ICONS[name]) {
    const path = document.createElementNS(svg.namespaceURI, "path");
    if (line.startsWith("solid ")) path.setAttribute("class", "solid");
    path.setAttribute("d", line.replace("solid ", ""));
    svg.append(path);
  }
  return svg;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(words, icon, act, className = "plain icon") {
  const made = element("button", className);
  made.type = "button";
  name(made, words, icon);
  made.onclick = act;
  return made;
}

function name(made, words, icon) {
  made.title = words;
  made.setAttribute("aria-label", words);
  made.replaceChildren(sign(icon));
}

function wordButton(words, act, className = "go calm") {
  const made = element("button", className, words);
  made.type = "button";
  made.onclick = act;
  return made;
}

function copyButton(words, text) {
  const made = button(words, "copy", async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      name(made, "Copied", "done");
    } catch { name(made, "The browser does not allow it", "copy"); }
    setTimeout(() => name(made, words, "copy"), 1500);
  });
  return made;
}

/* Conversations, each under a key of its own */

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), title: "", updated: 0, turns: [] };
}

function kept() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith("chat.talk.")) continue;
    try {
      const one = JSON.parse(localStorage.getItem(key));
      if (Array.isArray(one.turns)) found.push(one);
    } catch { localStorage.removeItem(key); }
  }
  return found.sort((a, b) => b.updated - a.updated);
}

function keep() {
  if (!talk.turns.length) return;
  talk.title = (talk.turns[0].user || "Conversation").slice(0, 80);
  talk.updated = Date.now();
  // Probabilities are large, and of use only while one looks at them.
  const text = JSON.stringify(talk, (key, value) => (key === "tokens" ? undefined : value));
  const others = kept().filter((one) => one.id !== talk.id);
  for (const old of others.splice(MOST_CONVERSATIONS - 1)) localStorage.removeItem("chat.talk." + old.id);
  for (;;) {
    try {
      localStorage.setItem("chat.talk." + talk.id, text);
      break;
    } catch {
      const oldest = others.pop();
      if (!oldest) break;  // larger than the browser keeps: it stays until the page is closed
      localStorage.removeItem("chat.talk." + oldest.id);
    }
  }
  sessionStorage.setItem("chat.current", talk.id);
  showList();
}

function showList() {
  const all = kept();
  $("list").replaceChildren(...all.map((one) => {
    const item = element("li", one.id === talk.id ? "current" : ""), pick = element("button", "pick", one.title);
    pick.type = "button";
    pick.title = one.title;
    if (one.id === talk.id) pick.setAttribute("aria-current", "true");
    pick.onclick = () => { openTalk(one.id); if (narrow.matches) showSide(false); $("text").focus(); };
    item.append(pick,
      button(`Export ${one.title}`, "save", () => download(`${fileName(one.title)}.json`, JSON.stringify(one, null, 2))),
      button(`Delete ${one.title}`, "remove", () => remove(one.id)));
    return item;
  }));
  if (!all.length) $("list").append(Object.assign(element("li"), { textContent: "" }));
  if (!all.length) $("list").firstChild.append(element("p", "none", "None yet"));
  for (const id of ["export", "clear"]) $(id).disabled = !all.length;
}

function openTalk(id) {
  const found = kept().find((one) => one.id === id);
  if (!found) return;
  stopping?.abort();
  talk = found;
  sessionStorage.setItem("chat.current", id);
  draw();
  showList();
}

function remove(id) {
  localStorage.removeItem("chat.talk." + id);
  if (id === talk.id) restart(); else showList();
  ($("list").querySelector(".pick") ?? $("new")).focus();
}

function restart() {
  stopping?.abort();
  talk = fresh();
  sessionStorage.removeItem("chat.current");
  draw();
  showList();
  $("text").focus();
}

function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";
}

function download(file, text) {
  const anchor = element("a");
  anchor.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  anchor.download = file;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
}

// Every conversation as a row that stage=prepare reads; of two models' answers, the better or the first.
function asRows() {
  return kept().map((one) => {
    const rows = [];
    if (one.system) rows.push({ role: "system", content: one.system });
    for (const turn of one.turns) {
      const best = turn.answers[turn.vote] ?? Object.values(turn.answers)[0];
      if (turn.user === null || !best?.text) continue;
      rows.push({ role: "user", content: turn.user }, { role: "assistant", content: best.text });
    }
    return { messages: rows };
  }).filter((row) => row.messages.some((message) => message.role === "assistant")).map((row) => JSON.stringify(row) + "\n").join("");
}

/* The server */

class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function refusal(response) {
  let message = "";
  try { message = (await response.json()).error.message; } catch { /* not in OpenAI's shape */ }
  const id = response.headers.get("X-Request-Id");
  if (response.status === 429) {
    const wait = response.headers.get("Retry-After");
    message = message || "Too many requests.";
    if (wait && !/try again/i.test(message)) message += ` Try again in ${wait} s.`;
  }
  return new Refused(response.status, (message || `The server returned status ${response.status}.`) + (response.status >= 500 && id ? ` (request ${id})` : ""));
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers(), signal: AbortSignal.timeout(3000) });
    if (!response.ok) throw await refusal(response);
    models = (await response.json()).data.map((model) => model.id);
    locked = false;
  } catch (error) {
    if (error.status === 401) {
      [models, locked] = [[], true];
      askForKey(store.get("key") ? "The server does not accept this key." : "This server requires an API key.");
    }
    show();
    return;
  }
  if (!models.includes(store.get("model"))) store.set("model", models[0] ?? "");
  if (!models.includes(store.get("compare"))) store.set("compare", "");
  fill($("model"), models.map((name) => [name, name]), store.get("model"));
  fill($("compare"), [["alone", ""], ...models.map((name) => [`beside ${name}`, name])], store.get("compare"));
  for (const id of ["compare-label", "blind-label"]) $(id).classList.toggle("hidden", models.length < 2);
  show();
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([words, name]) => new Option(words, name, false, name === value)));
}

function show() {
  const names = chosen();
  $("title").textContent = document.title = names.join(" beside ") || "Chat";
  $("talk").classList.toggle("beside", names.length > 1 || talk.turns.some((turn) => turn.order?.length > 1));
  $("empty").classList.toggle("hidden", talk.turns.length > 0);
  $("send").disabled = !names.length || !$("text").value.trim() || Boolean(stopping);
  $("send").classList.toggle("hidden", Boolean(stopping));
  $("stop").classList.toggle("hidden", !stopping);
}

async function watch() {
  let state = "down", words = "not reachable";
  try {
    const response = await fetch("health/ready");
    const { status } = await response.json();
    [state, words] = response.ok ? ["ready", "ready"] : ["down", status];
  } catch { /* the server is gone */ }
  const was = $("state").dataset.state;
  if (was !== state || $("state").textContent !== words) {
    $("state").dataset.state = state;
    $("state").firstElementChild.textContent = words;
    $("state").title = words;
    $("about").textContent = state === "ready" ? ABOUT : `The server is not ready: ${words}.`;
  }
  if (state === "ready" && !models.length && !locked) await loadModels();
  setTimeout(watch, state === "ready" ? 15000 : 2000);
}

/* Settings */

function askForKey(words) { complain(words, "key"); }

function complain(words, id) {
  $("note").textContent = words;
  $("note").classList.remove("hidden");
  openSettings();
  $(id).focus();
}

function openSettings() {
  for (const id of FIELDS) $(id).value = store.get(id);
  for (const id of CHECKS) $(id).checked = on(id);
  if (store.get("schema") || store.get("tools")) $("forms").open = true;
  $("settings").returnValue = "";
  if (!$("settings").open) $("settings").showModal();
}

// What is wrong with the fields: the words, and the field.
function fault() {
  for (const [id] of NUMBERS) if (!$(id).checkValidity()) return [`${$(id).labels[0].textContent.trim()}: ${$(id).validationMessage}`, id];
  for (const [id, words] of [["schema", "The JSON schema"], ["tools", "The list of tools"]]) {
    if (!$(id).value.trim()) continue;
    try {
      const found = JSON.parse($(id).value);
      if (id === "tools" && !Array.isArray(found)) return [`${words} must be a list.`, id];
    } catch (error) { return [`${words} is not valid JSON: ${error.message}`, id]; }
  }
  return null;
}

function saveSettings() {
  const key = store.get("key");
  for (const id of FIELDS) store.set(id, $(id).value.trim());
  for (const id of CHECKS) store.set(id, $(id).checked ? "yes" : "");
  $("note").classList.add("hidden");
  if (store.get("key") !== key || (locked && $("settings").returnValue === "done")) loadModels(); else show();
  $("text").focus();
}

/* Requests */

// What a model is asked at a turn: its own earlier answers, and what people said.
function messagesFor(model, until) {
  const messages = [];
  if (store.get("system")) messages.push({ role: "system", content: store.get("system") });
  for (const turn of talk.turns) {
    const answer = turn.answers[model], answered = answer && (answer.text || answer.calls?.length);
    if (turn !== until && !answered) continue;  // this model got no request, or did not reply
    if (turn.user !== null) messages.push({ role: "user", content: turn.user });
    else for (const [id, content] of Object.entries(turn.results)) messages.push({ role: "tool", tool_call_id: id, content });
    if (turn === until) break;
    const said = { role: "assistant", content: answer.text };
    if (answer.calls?.length) said.tool_calls = answer.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    messages.push(said);
  }
  return messages;
}

function bodyFor(model, messages) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const [id, field] of NUMBERS) if (store.get(id)) body[field] = Number(store.get(id));
  if (store.get("stop-strings")) body.stop = store.get("stop-strings").split("|").filter(Boolean);
  if (store.get("reasoning")) body.reasoning_effort = store.get("reasoning");
  if (store.get("schema")) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(store.get("schema")) } };
  if (store.get("tools")) body.tools = JSON.parse(store.get("tools"));
  if (on("probabilities")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

// The events of a stream, as objects, until [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}

function take(answer, choice, view) {
  const { delta } = choice;
  answer.text += delta.content ?? "";
  answer.thoughts += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call = answer.calls[part.index] ??= { id: "", name: "", arguments: "" };
    call.id ||= part.id ?? "";
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  for (const token of choice.logprobs?.content ?? []) {
    // A character may be of several tokens: the last one shows it.
    const text = token.bytes ? view.decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.token;
    answer.tokens.push({ text, name: token.token, p: Math.exp(token.logprob), top: token.top_logprobs.map((top) => [top.token, Math.exp(top.logprob)]) });
  }
  if (choice.finish_reason === "length") answer.reason = "reached the maximum length";
}

async function answerTurn(model, turn, view, signal) {
  const answer = turn.answers[model] = { text: "", thoughts: "", calls: [], tokens: [], reason: "", numbers: [] };
  const began = performance.now();
  let first = null, last = null, tokens = null, waiting = false;
  const paint = () => {
    waiting = false;
    const near = $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight < 80;
    drawAnswer(view, answer);
    if (near) $("main").scrollTop = $("main").scrollHeight;
  };
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(bodyFor(model, messagesFor(model, turn))), signal });
    if (!response.ok) throw await refusal(response);
    for await (const event of events(response)) {
      if (event.error) throw new Refused(500, event.error.message);
      if (event.citations) answer.citations = event.citations;
      if (event.usage) tokens = event.usage.completion_tokens;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const had = answer.text.length + answer.thoughts.length + answer.calls.length;
      take(answer, choice, view);
      if (answer.text.length + answer.thoughts.length + answer.calls.length > had || choice.delta.tool_calls) {
        last = performance.now();
        first ??= last;
      }
      if (!waiting) { waiting = true; setTimeout(paint, answer.text.length > 20000 ? 400 : 30); }
      measure(answer, began, first, last, null);
    }
  } catch (error) {
    if (error.name === "AbortError") answer.reason = "stopped";
    else answer.problem = error instanceof Refused ? error.message : "The connection to the server was lost.";
    if (error.status === 401) askForKey("The server does not accept this key.");
  }
  measure(answer, began, first, last, tokens);
  view.box.classList.remove("busy");
  view.box.setAttribute("aria-busy", "false");
  paint();
  finish(view, model, turn);
}

// A short response arrives at once, so its speed would be that of the network.
function measure(answer, began, first, last, tokens) {
  const shown = [], rate = (tokens - 1) / (last - first) * 1000;
  if (first !== null) shown.push(`first token ${Math.round(first - began)} ms`);
  if (tokens > 1 && last - first > 50) shown.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
  if (tokens !== null) shown.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (answer.reason) shown.push(answer.reason);
  answer.numbers = shown;
}

async function run(turn, names) {
  const views = names.map((model) => turn.views[model]);
  stopping = new AbortController();
  show();
  const { signal } = stopping, mine = talk;
  await Promise.all(names.map((model, i) => answerTurn(model, turn, views[i], signal)));
  if (stopping?.signal === signal) stopping = null;
  if (mine === talk) { keep(); offerVote(turn); }
  show();
}

/* What is shown */

function draw() {
  for (const part of [...$("talk").children]) if (part !== $("empty")) part.remove();
  for (const turn of talk.turns) drawTurn(turn);
  show();
  $("main").scrollTop = $("main").scrollHeight;
}

function drawTurn(turn) {
  const row = element("div", "answers");
  turn.order ??= Object.keys(turn.answers);
  const views = {};
  for (const model of turn.order) {
    const view = views[model] = card(model, turn);
    row.append(view.box);
    if (turn.answers[model]) {
      view.box.classList.remove("busy");
      view.box.setAttribute("aria-busy", "false");
      drawAnswer(view, turn.answers[model]);
      finish(view, model, turn);
    }
  }
  // Not part of what is kept.
  Object.defineProperty(turn, "views", { value: views, enumerable: false, configurable: true });
  Object.defineProperty(turn, "row", { value: row, enumerable: false, configurable: true });
  if (turn.user !== null) $("talk").append(asked(turn));
  $("talk").append(row);
  offerVote(turn);
}

function asked(turn) {
  const box = element("div", "asked"), tools = element("div", "tools");
  tools.append(button("Edit this message", "edit", () => editMessage(turn, box)), copyButton("Copy this message", turn.user));
  box.append(element("div", "sent", turn.user), tools);
  return box;
}

// A text to change, with what happens then. `box` shows it until that.
function writing(box, text, words, note, act) {
  const area = element("textarea"), form = element("div", "writing"), end = element("div", "end"), old = [...box.childNodes];
  area.value = text;
  area.setAttribute("aria-label", words);
  const close = () => { box.replaceChildren(...old); box.classList.remove("open"); };
  const done = () => { if (area.value.trim()) { close(); act(area.value.trim()); } };
  end.append(wordButton("Cancel", () => { close(); $("text").focus(); }), wordButton(words, done, "go"));
  form.append(area, ...(note ? [element("small", "", note)] : []), end);
  area.onkeydown = (event) => {
    if (event.key === "Escape") { event.stopPropagation(); close(); $("text").focus(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  };
  box.replaceChildren(form);
  area.focus();
}

function editMessage(turn, box) {
  if (stopping) return;
  const later = talk.turns.indexOf(turn) < talk.turns.length - 1;
  writing(box, turn.user, "Send again", later ? "Later messages of this conversation are removed." : "", (text) => {
    cutAt(turn);
    ask(text);
  });
}

// Remove a turn and all later ones.
function cutAt(turn) {
  talk.turns.splice(talk.turns.indexOf(turn));
  draw();
}

function regenerate(turn, model) {
  if (stopping) return;
  talk.turns.splice(talk.turns.indexOf(turn) + 1);
  delete turn.vote;
  turn.answers[model] = undefined;
  draw();
  run(turn, [model]);
}

const letter = (turn, model) => "AB"[turn.order.indexOf(model)];
const hidden = (turn) => turn.blind && !turn.vote;
const called = (turn, model) => (hidden(turn) ? letter(turn, model) : model);

function card(model, turn) {
  const box = element("article", "answer busy"), words = called(turn, model);
  box.setAttribute("aria-label", `Reply of ${words}`);
  box.setAttribute("aria-busy", "true");
  const head = element("h2", turn.order.length > 1 ? "who" : "who reader", words);
  const thoughts = element("details", "thoughts hidden"), text = element("div", "text"), calls = element("div"), foot = element("div", "foot"), numbers = element("div", "numbers");
  thoughts.append(element("summary", "", "Thoughts"), element("div"));
  foot.append(numbers);
  box.append(head, thoughts, text, calls, foot);
  return { box, thoughts, text, calls, foot, numbers, drawn: null, decoder: new TextDecoder() };
}

function drawAnswer(view, answer) {
  if (view.drawn !== answer.text) view.text.replaceChildren(...markdown(answer.text));
  view.drawn = answer.text;
  view.thoughts.classList.toggle("hidden", !answer.thoughts);
  view.thoughts.lastChild.textContent = answer.thoughts ?? "";
  view.numbers.replaceChildren(...answer.numbers.map((words) => element("span", "", words)));
}

// What is offered at an answer that is complete.
function finish(view, model, turn) {
  const answer = turn.answers[model], words = called(turn, model), last = turn === talk.turns.at(-1);
  for (const old of view.box.querySelectorAll(".problem, .sources")) old.remove();
  if (answer.citations) showCitations(view, answer.citations);
  for (const old of view.foot.querySelectorAll("button")) old.remove();
  if (answer.problem) {
    const problem = element("div", "problem", answer.problem);
    problem.setAttribute("role", "alert");
    view.text.after(problem);
    if (!answer.text) { view.text.classList.add("hidden"); view.numbers.replaceChildren(); }
  }
  drawCalls(view, model, turn, last);
  if (answer.text) view.foot.append(copyButton(`Copy the reply of ${words}`, answer.text));
  view.foot.append(button(`Ask ${words} again`, "again", () => regenerate(turn, model)));
  if (!answer.text || turn.user === null) return;
  if (answer.tokens?.length) {
    const shower = button(`Show the probabilities of ${words}'s tokens`, "tokens", () => {
      const shown = shower.getAttribute("aria-pressed") !== "true";
      shower.setAttribute("aria-pressed", String(shown));
      view.text.replaceChildren(...(shown ? [tokenView(answer.tokens)] : markdown(answer.text)));
      view.drawn = null;
    });
    shower.setAttribute("aria-pressed", "false");
    view.foot.append(shower);
  }
  if (!feedback || hidden(turn)) return;
  for (const [rating, verb] of [["good", "Good reply"], ["bad", "Bad reply"]]) {
    const thumb = button(`${verb} of ${words}`, rating, () => rate(turn, model, { rating }, view));
    thumb.setAttribute("aria-pressed", String(answer.rating === rating));
    view.foot.append(thumb);
  }
  view.foot.append(button(`Correct the reply of ${words}`, "correct", () => correct(turn, model, view)));
}

/* Tools */

function drawCalls(view, model, turn, last) {
  const { calls } = turn.answers[model], results = talk.turns[talk.turns.indexOf(turn) + 1]?.results ?? {};
  view.calls.replaceChildren();
  if (!calls?.length) return;
  const fields = {};
  for (const call of calls) {
    const box = element("div", "call");
    let pretty = call.arguments;
    try { pretty = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* cut off by the maximum length */ }
    box.append(element("strong", "", `calls ${call.name}`), element("pre", "", pretty));
    if (last && turn.order.length === 1) {
      const label = element("label", "", `Result of ${call.name}`), field = fields[call.id] = element("input");
      field.placeholder = "as text or JSON";
      field.onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); give(); } };
      label.append(field);
      box.append(label);
    } else if (results[call.id]) box.append(element("pre", "", `→ ${results[call.id]}`));
    view.calls.append(box);
  }
  function give() {
    if (stopping) return;
    ask(null, Object.fromEntries(Object.entries(fields).map(([id, field]) => [id, field.value])));
  }
  if (Object.keys(fields).length) view.calls.append(wordButton("Send the results", give));
}

/* Probabilities */

function tokenView(tokens) {
  const box = element("div", "tokens");
  let here = -1;
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.setAttribute("aria-label", "Tokens with their probabilities. Arrow keys go from one to the next.");
  const spans = tokens.map((token, i) => {
    const span = element("span", "p" + (token.p >= .9 ? 4 : token.p >= .6 ? 3 : token.p >= .3 ? 2 : token.p >= .1 ? 1 : 0), token.text);
    span.onmouseenter = () => point(i);
    return span;
  });
  const point = (i) => {
    spans[here]?.classList.remove("here");
    here = Math.max(0, Math.min(tokens.length - 1, i));
    spans[here].classList.add("here");
    showTip(tokens[here], spans[here]);
  };
  box.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!step) return;
    event.preventDefault();
    point(here + step);
  };
  box.onfocus = () => { if (here < 0 && box.matches(":focus-visible")) point(0); };
  box.onblur = box.onmouseleave = () => { spans[here]?.classList.remove("here"); here = -1; $("tip").classList.add("hidden"); };
  box.append(...spans);
  return box;
}

function showTip(token, at) {
  const percent = (p) => `${(100 * p).toFixed(p > .0995 ? 0 : 1)} %`;
  const visible = (text) => text.replaceAll("\n", "⏎").replace(/^ | $/g, "·") || "∅";
  const rows = token.top.some(([text]) => text === token.name) ? token.top : [[token.name, token.p], ...token.top];
  $("tip").replaceChildren(...rows.map(([text, p]) => {
    const row = element("div", text === token.name ? "chosen" : "");
    row.append(element("code", "", visible(text)), element("span", "", percent(p)));
    return row;
  }));
  $("tip").classList.remove("hidden");
  const place = at.getBoundingClientRect(), tip = $("tip").getBoundingClientRect();
  $("tip").style.left = `${Math.max(8, Math.min(place.left, innerWidth - tip.width - 8))}px`;
  $("tip").style.top = `${place.bottom + tip.height + 12 < innerHeight ? place.bottom + 6 : place.top - tip.height - 6}px`;
  $("say").textContent = `${token.name}, ${percent(token.p)}`;
}

/* What people think of answers */

// The conversation before an answer, as one model saw it; without tools, which rows of preferences have not.
function before(turn, model) {
  return messagesFor(model, turn).filter((message) => message.role !== "tool" && message.content);
}

async function rate(turn, model, what, view) {
  if (!on("consent")) {
    complain("Ratings are kept with their conversation: allow that first.", "consent");
    return false;
  }
  const answer = turn.answers[model];
  const body = { model, messages: before(turn, model), answer: answer.text, ...what };
  const sent = await post("v1/feedback", body, view);
  if (sent && what.rating) answer.rating = what.rating;
  if (sent) { keep(); finish(view, model, turn); thank(view, what.correction ? "Your correction is recorded." : "Your rating is recorded."); }
  return sent;
}

function correct(turn, model, view) {
  if (!on("consent")) { complain("Corrections are kept with their conversation: allow that first.", "consent"); return; }
  const place = element("div");
  view.foot.before(place);
  writing(place, turn.answers[model].text, "Send the correction", "The answer as it should have been. It is recorded to train the model.", (text) => {
    place.remove();
    if (text !== turn.answers[model].text) rate(turn, model, { rating: "bad", correction: text }, view);
  });
  place.querySelector("button").addEventListener("click", () => place.remove());
}

async function post(path, body, view) {
  try {
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body) });
    if (!response.ok) throw await refusal(response);
    return true;
  } catch (error) {
    thank(view, error instanceof Refused ? error.message : "The connection to the server was lost.");
    return false;
  }
}

function thank(view, words) {
  $("say").textContent = words;
  view.numbers.replaceChildren(element("span", "", words));
}

function offerVote(turn) {
  turn.row.nextElementSibling?.matches(".vote") && turn.row.nextElementSibling.remove();
  const [first, second] = turn.order, whole = turn.order.length === 2 && turn.order.every((model) => turn.answers[model]?.text && turn.views[model].box.getAttribute("aria-busy") === "false");
  if (!whole || !(turn.blind || feedback)) return;
  const bar = element("div", "vote");
  for (const model of turn.order) turn.views[model].box.classList.toggle("won", turn.vote === model);
  if (turn.vote) bar.append(element("span", "", tally(first, second)));
  else bar.append(
    wordButton(`${called(turn, first)} is better`, () => vote(turn, first)),
    wordButton("Both are alike", () => vote(turn, "tie")),
    wordButton(`${called(turn, second)} is better`, () => vote(turn, second)));
  turn.row.after(bar);
}

async function vote(turn, winner) {
  const [first, second] = turn.order, side = (model) => ({ model, answer: turn.answers[model].text });
  if (feedback) {
    const better = winner === "tie" ? "tie" : winner === first ? "first" : "second";
    const body = { messages: before(turn, first), first: side(first), second: side(second), better };
    if (!await post("v1/votes", body, turn.views[first])) return;
  }
  const votes = JSON.parse(localStorage.getItem("chat.votes") ?? "{}"), pair = [first, second].sort().join("\n");
  votes[pair] ??= {};
  votes[pair][winner] = (votes[pair][winner] ?? 0) + 1;
  localStorage.setItem("chat.votes", JSON.stringify(votes));
  turn.vote = winner;
  for (const model of turn.order) {
    const { box } = turn.views[model];
    box.querySelector(".who").textContent = model;
    box.setAttribute("aria-label", `Reply of ${model}`);
    finish(turn.views[model], model, turn);
  }
  keep();
  offerVote(turn);
  $("say").textContent = tally(first, second);
  $("text").focus();
}

function tally(first, second) {
  const votes = JSON.parse(localStorage.getItem("chat.votes") ?? "{}")[[first, second].sort().join("\n")] ?? {};
  return `Your votes so far: ${first} ${votes[first] ?? 0}, ${second} ${votes[second] ?? 0}, alike ${votes.tie ?? 0}`;
}

/* The request as code */

const OPENAI = new Set(("model messages stream stream_options temperature top_p max_tokens frequency_penalty presence_penalty seed stop " +
  "reasoning_effort response_format tools logprobs top_logprobs").split(" "));

function python(value, indent = "") {
  const more = indent + "    ";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => more + python(one, more)).join(",\n")},\n${indent}]` : "[]";
  if (value && typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, more)}`).join(", ")}}`;
  return value === true ? "True" : value === false ? "False" : value === null ? "None" : JSON.stringify(value);
}

function asCode(language) {
  const draft = $("text").value.trim(), model = chosen()[0] ?? "model";
  const last = talk.turns.at(-1), messages = messagesFor(model, draft ? null : last);
  if (draft || !last) messages.push({ role: "user", content: draft || "Hello" });
  const body = bodyFor(model, messages), base = new URL("v1", location.href).href, key = Boolean(store.get("key"));
  if (language === "curl") {
    const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
    return `curl -N ${base}/chat/completions \\\n  -H "Content-Type: application/json" \\\n${key ? '  -H "Authorization: Bearer $SERVE_API_KEY" \\\n' : ""}  -d '${text}'`;
  }
  delete body.stream_options;
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const lines = Object.entries(body).filter(([name]) => OPENAI.has(name)).map(([name, value]) => `    ${name}=${python(value, "    ")},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, "    ")},`);
  return `${key ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${base}", api_key=${key ? 'os.environ["SERVE_API_KEY"]' : '"none"'})\n` +
    `for chunk in client.chat.completions.create(\n${lines.join("\n")}\n):\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)`;
}

function showCode(language) {
  for (const one of ["curl", "python"]) $("as-" + one).setAttribute("aria-pressed", String(one === language));
  $("code-text").textContent = asCode(language);
}

/* What people do */

function ask(text, results) {
  const names = results ? talk.turns.at(-1).order : chosen();
  if (!names.length || stopping) return;
  const order = names.length > 1 && on("blind") && Math.random() < .5 ? [...names].reverse() : names;
  const turn = { user: text, answers: {}, order, blind: names.length > 1 && on("blind") };
  if (results) turn.results = results;
  if (!talk.turns.length) talk.system = store.get("system");
  const earlier = talk.turns.at(-1);
  talk.turns.push(turn);
  for (const model of earlier?.order ?? []) if (earlier.answers[model]?.calls?.length) drawCalls(earlier.views[model], model, earlier, false);
  drawTurn(turn);
  $("main").scrollTop = $("main").scrollHeight;
  keep();
  return run(turn, order);
}

function send() {
  const text = $("text").value.trim();
  if (!text || !chosen().length || stopping) return;
  $("text").value = "";
  ask(text);
}

const narrow = matchMedia("(max-width: 64rem)");
function showSide(shown) {
  $("side").classList.toggle("hidden", !shown);
  $("shade").classList.toggle("hidden", !shown);
  $("menu").setAttribute("aria-expanded", String(shown));
  if (!narrow.matches) localStorage.setItem("chat.side", shown ? "" : "hidden");
}

$("ask").onsubmit = (event) => { event.preventDefault(); send(); };
$("text").oninput = show;
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !$("text").value && talk.turns.length && !stopping) {
    const boxes = document.querySelectorAll(".asked"), turn = talk.turns.findLast((one) => one.user !== null);
    if (boxes.length && turn) { event.preventDefault(); editMessage(turn, boxes[boxes.length - 1]); }
  }
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || $("settings").open || $("codes").open) return;
  if (narrow.matches && !$("side").classList.contains("hidden")) { showSide(false); $("menu").focus(); } else stopping?.abort();
};
$("stop").onclick = () => { stopping?.abort(); $("text").focus(); };
$("new").onclick = restart;
for (const id of ["model", "compare"]) $(id).onchange = () => { store.set(id, $(id).value); show(); };
$("open").onclick = async () => {
  if (!locked) await loadModels();  // adapters can be loaded and unloaded while the server runs
  openSettings();
};
$("model").onfocus = () => { if (!locked && !stopping) loadModels(); };
$("settings").onclose = saveSettings;
$("done").onclick = (event) => {
  const found = fault();
  if (!found) return;
  event.preventDefault();
  $("forms").open ||= ["schema", "tools"].includes(found[1]);
  $("note").textContent = found[0];
  $("note").classList.remove("hidden");
  $(found[1]).focus();
};
$("settings").oncancel = () => { if (fault()) for (const id of FIELDS) $(id).value = store.get(id); };
$("code").onclick = () => { showCode("curl"); $("codes").showModal(); };
for (const one of ["curl", "python"]) $("as-" + one).onclick = () => showCode(one);
$("code-copy").onclick = async () => {
  try { await navigator.clipboard.writeText($("code-text").textContent); $("code-copy").textContent = "Copied"; } catch { $("code-copy").textContent = "Not allowed"; }
  setTimeout(() => { $("code-copy").textContent = "Copy"; }, 1500);
};
$("menu").onclick = () => { showSide($("side").classList.contains("hidden")); if (narrow.matches) $("list").querySelector(".pick")?.focus(); };
$("shade").onclick = () => showSide(false);
$("export").onclick = () => download("conversations.jsonl", asRows());
$("clear").onclick = () => {
  // Two clicks: the first one asks.
  if ($("clear").dataset.sure) {
    for (const one of kept()) localStorage.removeItem("chat.talk." + one.id);
    restart();
  } else $("clear").textContent = "Really delete all?";
  $("clear").dataset.sure = $("clear").dataset.sure ? "" : "yes";
  if (!$("clear").dataset.sure) $("clear").textContent = "Delete all";
};
$("clear").onblur = () => { $("clear").dataset.sure = ""; $("clear").textContent = "Delete all"; };
$("theme").onclick = () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  localStorage.setItem("chat.theme", document.documentElement.dataset.theme = dark ? "light" : "dark");
};

for (const [id, icon, words] of [["menu", "menu"], ["new", "add", "New chat"], ["code", "code", "Code"], ["open", "settings", "Settings"], ["theme", "theme"]]) {
  $(id).append(sign(icon), ...(words ? [element("span", "wide", words)] : []));
}
if (localStorage.getItem("chat.theme")) document.documentElement.dataset.theme = localStorage.getItem("chat.theme");
$("consent-label").classList.toggle("hidden", !(records || feedback));
if (feedback) $("consent-words").textContent = "My conversations, ratings and corrections may be recorded to train the model.";
if (!narrow.matches && !localStorage.getItem("chat.side")) showSide(true);
showList();
openTalk(store.get("current"));
show();
watch();
