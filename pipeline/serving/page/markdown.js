// Markdown as elements. Every text becomes a text node, so nothing that a model writes is markup of
// the page; links go to http, https and mailto alone, and pictures are shown as links.

function node(tag, ...content) {
  const made = document.createElement(tag);
  made.append(...content);
  return made;
}

function link(text, address) {
  if (!/^(https?|mailto):/i.test(address)) return [text];
  const made = node("a", text || address);
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  made.title = address;
  return [made];
}

// What may be inside a line: the pattern, and what becomes of its groups. The first match counts.
const INLINE = [
  [/^(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, (m) => [node("code", m[2].replace(/^ (.*\S.*) $/s, "$1"))]],
  [/^\\([!-/:-@[-`{-~])/, (m) => [m[1]]],
  [/^!?\[([^\][]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/, (m) => link(m[1], m[2])],
  [/^<((?:https?|mailto):[^\s<>]+)>/i, (m) => link(m[1], m[1])],
  [/^(\*\*|__)(?=\S)([\s\S]*?\S)\1/, (m) => [node("strong", ...inline(m[2]))]],
  [/^\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)/, (m) => [node("em", ...inline(m[1]))]],
  [/^_(?=[^\s_])([\s\S]*?[^\s_])_(?![\w_])/, (m, before) => /\w$/.test(before) ? null : [node("em", ...inline(m[1]))]],
  [/^~~(?=\S)([\s\S]*?\S)~~/, (m) => [node("del", ...inline(m[1]))]],
];

function inline(text) {
  const parts = [];
  let plain = "", rest = text, before = "";
  while (rest) {
    const stop = rest.search(/[`\\![<*_~]/);
    if (stop) {
      const cut = stop < 0 ? rest.length : stop;
      plain += rest.slice(0, cut);
      before = plain;
      rest = rest.slice(cut);
      continue;
    }
    let made = null, length = 1;
    for (const [pattern, make] of INLINE) {
      const match = pattern.exec(rest);
      made = match && make(match, before);
      if (made) { length = match[0].length; break; }
    }
    if (made) {
      if (plain) parts.push(plain);
      parts.push(...made);
      plain = "";
    } else plain += rest[0];
    before = rest.slice(0, length);
    rest = rest.slice(length);
  }
  if (plain) parts.push(plain);
  return parts;
}

const WORDS = new Set(("abstract and as async await break case catch class const continue def default delete do elif else end enum " +
  "except export extends false False finally fn for from function global if impl import in interface is lambda let match mut " +
  "new nil None not null or pass private protected pub public raise return select self static struct super switch then this throw " +
  "true True try type typeof undefined use var void where while with yield SELECT FROM WHERE JOIN GROUP ORDER BY INSERT UPDATE SET").split(" "));
const HASHES = /^(py|python|sh|bash|shell|zsh|console|ruby|rb|yaml|yml|toml|r|perl|make|makefile|dockerfile|ini|conf)$/i;
const MARKED = /("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`)|(\/\/[^\n]*|\/\*[\s\S]*?\*\/|#[^\n]*|--[^\n]*)|(\b\d[\w.]*\b)|(\b[A-Za-z_]\w*\b)/g;

function highlighted(code, language) {
  const parts = [], say = (kind, text) => { const made = node("span", text); made.className = "code-" + kind; parts.push(made); };
  let at = 0;
  for (const match of code.matchAll(MARKED)) {
    const [text, string, comment, number, word] = match;
    const isComment = comment && (comment.startsWith("/") ? !HASHES.test(language) : comment.startsWith("#") ? HASHES.test(language) : /^sql$/i.test(language));
    const kind = string ? "string" : isComment ? "comment" : number ? "number" : word && WORDS.has(word) ? "word" : null;
    if (!kind) continue;
    parts.push(code.slice(at, match.index));
    say(kind, text);
    at = match.index + text.length;
  }
  parts.push(code.slice(at));
  return parts;
}

function codeBlock(code, language) {
  const pre = node("pre", node("code", ...(code.length < 50000 ? highlighted(code, language) : [code])));
  pre.tabIndex = 0;  // long lines are scrolled by keyboard
  pre.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
  pre.setAttribute("role", "region");
  const head = node("div", node("span", language || "text"), copyButton("Copy the code", code)), made = node("div", head, pre);
  made.className = "block";
  return made;
}

const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ROW = /^\s*\|?[^\n]*\|[^\n]*$/;

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines) {
  const head = node("tr", ...cells(lines[0]).map((cell) => node("th", ...inline(cell))));
  const rows = lines.slice(2).map((line) => node("tr", ...cells(line).map((cell) => node("td", ...inline(cell)))));
  const made = node("div", node("table", node("thead", head), node("tbody", ...rows)));
  made.className = "scroll";
  return made;
}

// A list and its items, of which each holds the lines that are indented below it.
function list(lines) {
  const first = ITEM.exec(lines[0]), ordered = /\d/.test(first[2]), made = node(ordered ? "ol" : "ul");
  if (ordered && parseInt(first[2]) !== 1) made.start = parseInt(first[2]);
  let item = null, width = 0;
  const close = () => {
    if (!item) return;
    const found = blocks(item.join("\n"), true);
    made.append(node("li", ...found));
  };
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length < Math.max(width, first[1].length + 2)) {
      close();
      width = match[1].length + match[2].length + 1;
      item = [match[4]];
    } else item.push(line.slice(Math.min(width, line.search(/\S|$/))));
  }
  close();
  return made;
}

function blocks(text, tight = false, depth = 0) {
  const lines = text.split("\n"), made = [];
  let at = 0, paragraph = [];
  const flush = () => {
    if (paragraph.length) made.push(...(tight && !made.length ? inline(paragraph.join("\n")) : [node("p", ...inline(paragraph.join("\n")))]));
    paragraph = [];
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = /^ {0,3}(```+|~~~+)\s*([^\s`]*)[^`]*$/.exec(line), heading = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (fence) {
      flush();
      const code = [];
      for (at += 1; at < lines.length && !(lines[at].trim().startsWith(fence[1]) && !lines[at].trim().slice(fence[1].length).trim()); at += 1) code.push(lines[at]);
      at += 1;
      made.push(codeBlock(code.join("\n"), fence[2]));
    } else if (!line.trim()) {
      flush();
      at += 1;
    } else if (heading) {
      flush();
      made.push(node("h" + Math.min(6, heading[1].length + 2), ...inline(heading[2])));
      at += 1;
    } else if (RULE.test(line)) {
      flush();
      made.push(node("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line) && depth < 8) {
      flush();
      const quoted = [];
      for (; at < lines.length && /^ {0,3}>/.test(lines[at]); at += 1) quoted.push(lines[at].replace(/^ {0,3}> ?/, ""));
      made.push(node("blockquote", ...blocks(quoted.join("\n"), false, depth + 1)));
    } else if (ITEM.test(line) && ITEM.exec(line)[1].length < 40 && (!paragraph.length || !/^ *\d/.test(line))) {
      flush();
      const items = [];
      for (; at < lines.length; at += 1) {
        const next = lines[at + 1] ?? "";
        if (!lines[at].trim() && !(ITEM.test(next) || /^ {2,}\S/.test(next))) break;
        if (lines[at].trim() && !ITEM.test(lines[at]) && !/^ {2,}/.test(lines[at]) && items.length && !items.at(-1).trim()) break;
        if (/^(```|#{1,6} )/.test(lines[at])) break;
        items.push(lines[at]);
      }
      made.push(list(items));
    } else if (ROW.test(line) && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? "") && /\|/.test(lines[at + 1])) {
      flush();
      const rows = [];
      for (; at < lines.length && ROW.test(lines[at]); at += 1) rows.push(lines[at]);
      made.push(table(rows));
    } else {
      paragraph.push(line);
      at += 1;
    }
  }
  flush();
  return made;
}

// The text as elements. A text that takes the rules by surprise is shown as it is.
function markdown(text) {
  try { return blocks(text.replaceAll("\r\n", "\n")); } catch { return [node("p", text)]; }
}
