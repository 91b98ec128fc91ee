// The text as it grows: a window of tokens up to a step, coloured by where they came from.

const WINDOW = 400;

/** The tokens of a request up to a step, those of the step marked. */
function drawText(target, request, texts, number) {
  const end = request.ends[number], start = Math.max(0, end - WINDOW);
  const reader = new ByteReader();
  const spans = [];
  for (let i = start; i < end; i++) {
    const { id, origin, step, share } = request.stream[i];
    const text = texts.get(id);
    const pieces = typeof text === "string" ? [...reader.flush(), ...piecesOf(text)] : reader.push(text);
    if (i === end - 1) pieces.push(...reader.flush()); // so far it is no character
    const span = html("span", { class: `token ${origin}${step === number ? " now" : ""}` }, ...pieces.map(shown));
    if (!pieces.length) span.append(html("i", { class: "part" }));
    if (step >= 0) {
      span.dataset.step = step;
      const origins = { draft: "accepted draft", own: "the target’s own" };
      span.title = [`step ${step + 1}`, origins[origin], ...(share === null ? [] : [percent(share)])].join(", ");
    }
    spans.push(span);
  }
  const gone = start ? [html("span", { class: "gone" }, `${count(start, "token")} before\n`)] : [];
  target.replaceChildren(...gone, ...spans, html("span", { class: "caret" }));
}

function shown({ kind, text }) {
  return kind === "plain" ? text : html("i", { class: kind }, text);
}
