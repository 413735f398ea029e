// The passages that an answer was made from, below it. `said` is the response's field `citations`.
function showCitations(view, said) {
  if (said.error) view.foot.before(element("div", "problem", "The documents could not be searched: the model answered without them."));
  if (!said.results.length) return;
  const box = element("details", "sources"), list = element("ol");
  for (const { number, document_name, content, metadata } of said.results) {
    const item = element("li"), page = metadata.page_number;
    const place = [document_name, page ? `page ${page}` : `line ${metadata.line}`, ...metadata.headings.slice(-1)];
    item.value = number;
    item.append(element("strong", "", place.join(" · ")), element("div", "", content));
    list.append(item);
  }
  const count = said.results.length;
  box.append(element("summary", "", count === 1 ? "1 source" : `${count} sources`), list);
  view.foot.before(box);
}
