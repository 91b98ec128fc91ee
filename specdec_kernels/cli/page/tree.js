// The tree of one step. The emitted text is one straight line; drafts that stand before it in the order of the tree
// branch off above it, those behind it below, so that no two lines cross.

const LOOSE = { pill: 25, row: 35, font: 13, small: 10.5, most: 20 };
const DENSE = { pill: 20, row: 24, font: 11.5, small: 9.5, most: 14 };
const MANY_ROWS = 14;
const LEFT = 1, TOP = 24, GAP = 30, BEND = 6;

/** Row of each node, and that of the straight line; `rows` in all. */
function rowsOf(step) {
  const onPath = new Set(step.path);
  const last = step.path[step.path.length - 1];
  const placed = [], met = new Set();
  let rows = 0, line = 0;
  step.parents.forEach((parent, node) => {
    if (onPath.has(node)) {
      if (node === last) line = rows++;
      placed.push(-1);
    } else if (parent >= 0 && !onPath.has(parent) && !met.has(parent)) placed.push(placed[parent]);
    else placed.push(rows++);
    met.add(parent);
  });
  return { rows, line, placed: placed.map((row) => (row < 0 ? line : row)) };
}

/** What is drawn: the nodes, and the target's own tokens as nodes of their own at the end of the line. */
function layOut(step, texts, measure) {
  const { rows, line, placed } = rowsOf(step);
  const look = rows > MANY_ROWS ? DENSE : LOOSE;
  const depths = depthsOf(step.parents), fates = fatesOf(step), taken = takenOf(step);
  const nodes = step.tokens.map((token, node) =>
    ({ node, token, row: placed[node], depth: depths[node], fate: fates[node], share: step.probabilities[node] })
  );
  step.emitted.slice(taken).forEach((token, i) => {
    const share = step.emitted_probabilities[taken + i];
    nodes.push({ node: -1, token, row: line, depth: taken + 1 + i, fate: "own", share });
  });
  const widths = [];
  for (const item of nodes) {
    item.label = labelPieces(item.token < 0 ? undefined : texts.get(item.token), look.most);
    item.percent = percent(item.share);
    const words = measure.mono(item.label.map((piece) => piece.text).join(""), look.font);
    const aside = item.percent ? measure.sans(item.percent, look.small) + 7 : 0;
    item.width = Math.ceil(Math.max(words, 12) + 18 + aside);
    widths[item.depth] = Math.max(widths[item.depth] ?? 0, item.width);
  }
  const columns = [];
  let right = LEFT;
  for (const width of widths) {
    columns.push(right);
    right += width + GAP;
  }
  for (const item of nodes) {
    item.x = columns[item.depth];
    item.y = TOP + item.row * look.row + look.pill / 2;
  }
  const middle = TOP + line * look.row + look.pill / 2;
  const last = nodes[step.emitted.length > taken ? nodes.length - 1 : step.path[taken]];
  const end = last.x + last.width;
  return { nodes, columns, look, line: middle, end, width: right - GAP + 2, height: heightOf(step) };
}

/** Draw a layout into an `<svg>`. */
function drawTree(target, layout, step) {
  const { nodes, columns, width, height } = layout;
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  target.setAttribute("width", width);
  target.setAttribute("height", height);
  const level = (x, depth) => svg("text", { class: "level", x: x + 1, y: 11 }, depth ? `${depth}` : "root");
  const levels = columns.map(level);
  target.replaceChildren(...levels, ...edges(layout, step), ...nodes.map((item) => nodeGroup(item, layout.look)));
}

function edges({ nodes, columns, line }, step) {
  const branches = [], children = nodes.map(() => []);
  for (const item of nodes) if (item.node > 0 && item.fate !== "accepted") children[step.parents[item.node]].push(item);
  children.forEach((group, node) => {
    const parent = nodes[node];
    const dim = parent.fate === "root" || parent.fate === "accepted" ? "" : " dim";
    for (const child of group) branches.push(svg("path", { class: `edge${dim}`, d: branch(parent, child, columns) }));
  });
  const stop = nodes[step.path[step.path.length - 1]];
  const owns = nodes.filter((item) => item.fate === "own");
  const main = stop === nodes[0] ? [] : [straight("edge line", nodes[0].x + nodes[0].width, stop.x, line)];
  const turns = owns.map((item, i) => {
    const before = i ? owns[i - 1] : stop;
    return straight("edge turn", before.x + before.width + 4, item.x - 2, line);
  });
  return [...branches, ...main, ...turns];
}

function straight(kind, from, to, y) {
  return svg("path", { class: kind, pathLength: kind === "edge line" ? 1 : to - from, d: `M${from} ${y}H${to}` });
}

/** Out of the parent, along the trunk of its children, round a bend, into the child. */
function branch(parent, child, columns) {
  const from = parent.x + parent.width, trunk = columns[child.depth] - GAP / 2;
  if (parent.y === child.y) return `M${from} ${parent.y}H${child.x}`;
  const turn = Math.sign(child.y - parent.y) * BEND;
  return (
    `M${from} ${parent.y}H${trunk - BEND}q${BEND} 0 ${BEND} ${turn}` +
    `V${child.y - turn}q0 ${turn} ${BEND} ${turn}H${child.x}`
  );
}

function nodeGroup(item, look) {
  const { x, y, width, fate } = item;
  const top = y - look.pill / 2, base = y + look.font * 0.35;
  const label = svg("text", { class: "label", x: x + 9, y: base, "font-size": look.font });
  for (const { kind, text } of item.label) label.append(kind === "plain" ? text : svg("tspan", { class: kind }, text));
  const parts = [svg("rect", { class: `pill ${fate}`, x, y: top, width, height: look.pill, rx: look.pill / 2 }), label];
  if (item.share > 0) {
    const d = gauge(x + 1, top + 1, width - 2, look.pill - 2, item.share);
    parts.splice(1, 0, svg("path", { class: "gauge", d }));
  }
  if (item.percent) {
    const place = { x: x + width - 9, y: base, "font-size": look.small };
    parts.push(svg("text", { class: "share", ...place }, item.percent));
  }
  return svg("g", { class: `node ${fate}`, "data-node": item.node }, ...parts);
}

/** The left part of a pill, so much of its width as a share says. */
function gauge(x, y, width, height, share) {
  const radius = height / 2, long = width * share;
  const rise = (across) => Math.sqrt(Math.max(radius * radius - across * across, 0)); // of the round ends
  const middle = y + radius, from = Math.min(long, radius), to = Math.min(long, width - radius);
  const left = rise(radius - from), right = long > width - radius ? rise(long - width + radius) : left;
  const arc = `A${radius} ${radius} 0 0 1 `;
  const bend = long > width - radius;
  return (
    `M${x + from} ${middle - left}H${to + x}${bend ? `${arc}${x + long} ${middle - right}` : ""}V${middle + right}` +
    `${bend ? `${arc}${x + to} ${middle + left}` : ""}H${x + from}${arc}${x + from} ${middle - left}z`
  );
}

/** How tall the tree of a step is, without laying it out. */
function heightOf(step) {
  const { rows } = rowsOf(step);
  const look = rows > MANY_ROWS ? DENSE : LOOSE;
  return TOP + (rows - 1) * look.row + look.pill + 3;
}

/** How wide texts are in the two fonts of the page. */
function makeMeasure(style) {
  const pen = document.createElement("canvas").getContext("2d");
  const measureIn = (family, weight) => (text, size) => {
    pen.font = `${weight} ${size}px ${family}`;
    return pen.measureText(text).width;
  };
  const [mono, sans] = ["--mono", "--sans"].map((name) => style.getPropertyValue(name));
  return { mono: measureIn(mono, 600), sans: measureIn(sans, 400) };
}
