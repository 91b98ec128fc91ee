// Figures of a request: tokens per step over time, acceptance by depth, time.

/** Steps in at most so many bins: mean accepted drafts and mean own tokens of each. */
function binned(request, most) {
  const size = Math.max(1, Math.ceil(request.steps.length / most));
  const bins = [];
  for (let from = 0; from < request.steps.length; from += size) {
    const part = request.steps.slice(from, from + size);
    const sum = (read) => part.reduce((total, step) => total + read(step), 0) / part.length;
    bins.push({ draft: sum(takenOf), own: sum((step) => step.emitted.length - takenOf(step)) });
  }
  return { bins, size };
}

/** The bars behind the slider; gives a function that moves the cursor to a step. */
function drawWave(target, request, width, height) {
  const steps = request.steps.length;
  const { bins, size } = binned(request, Math.max(1, Math.floor(width / 3)));
  const most = Math.max(1, ...bins.map((bin) => bin.draft + bin.own));
  const pitch = (width * size) / steps, gap = pitch > 6 ? 2 : pitch > 3 ? 1 : 0;
  const unit = (height - 8) / most;
  const lengths = { draft: "", own: "" };
  bins.forEach((bin, i) => {
    const x = (i * pitch + gap / 2).toFixed(2);
    const wide = Math.max(Math.min(pitch, width - i * pitch) - gap, 0.5).toFixed(2);
    const middle = height - bin.draft * unit;
    lengths.draft += bin.draft ? `M${x} ${height}h${wide}V${middle}h-${wide}z` : "";
    lengths.own += bin.own ? `M${x} ${middle}h${wide}v-${bin.own * unit}h-${wide}z` : "";
  });
  const mean = height - (request.emitted / Math.max(steps, 1)) * unit;
  const veil = svg("rect", { class: "veil", y: 0, height });
  const cursor = svg("path", { class: "cursor" });
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  target.replaceChildren(
    svg("path", { class: "draft", d: lengths.draft }),
    svg("path", { class: "own", d: lengths.own }),
    veil,
    svg("path", { class: "mean", d: `M0 ${mean}H${width}` }),
    svg("text", { x: width, y: Math.max(mean - 4, 10) }, `mean ${(request.emitted / Math.max(steps, 1)).toFixed(2)}`),
    cursor
  );
  return (step) => {
    const x = ((step + 1) * width) / Math.max(steps, 1);
    veil.setAttribute("x", x);
    veil.setAttribute("width", Math.max(width - x, 0));
    cursor.setAttribute("d", `M${Math.min(x, width - 1)} 0V${height}`);
  };
}

/** Share of the drafts at each depth that were accepted; gives a function that marks how far a step came. */
function drawDepths(target, note, request) {
  const shares = request.drafted.map((drafted, i) => request.accepted[i] / drafted);
  target.classList.toggle("dense", shares.length > 12);
  note.textContent = shares.length ? "of the steps with drafts that deep" : "";
  if (!shares.length) {
    target.replaceChildren(html("p", { class: "nothing" }, "No drafts: every token is the target’s own."));
    target.removeAttribute("aria-label");
    return () => {};
  }
  const columns = shares.map((share, i) => {
    const bar = html("i");
    bar.style.height = `${100 * share}%`;
    const title = `depth ${i + 1}: accepted in ${request.accepted[i]} of ${count(request.drafted[i], "step")}`;
    const value = html("span", { class: "value" }, percent(share));
    const depth = html("span", { class: "depth" }, `${i + 1}`);
    return html("div", { title }, value, html("span", { class: "bar" }, bar), depth);
  });
  target.replaceChildren(...columns);
  target.setAttribute("aria-label", shares.map((share, i) => `depth ${i + 1}: ${percent(share)}`).join(", "));
  return (taken) => columns.forEach((column, i) => column.classList.toggle("here", i < taken));
}

/** Seconds for people. */
function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)}\u00a0s`;
  return seconds >= 1e-3 ? `${(1e3 * seconds).toFixed(1)}\u00a0ms` : `${(1e6 * seconds).toFixed(0)}\u00a0µs`;
}

/** Phases of a step, and what they take on average over the steps of its request. */
function drawTimes(bar, list, note, trace, request, step) {
  const now = trace.phases.map((phase) => trace.seconds[phase][step.step]);
  const total = now.reduce((sum, one) => sum + one, 0);
  note.textContent = `${duration(total)} for this step`;
  bar.replaceChildren(
    ...now.map((one, i) => {
      const part = html("i", { class: `tone-${i % 4}` });
      part.style.flexGrow = total ? one / total : 1;
      return part;
    })
  );
  list.replaceChildren(
    ...trace.phases.map((phase, i) => {
      const name = html("dt", {}, html("i", { class: `tone-${i % 4}` }), visible(phase));
      const mean = html("small", {}, `mean ${duration(request.means[i])}`);
      return html("div", {}, name, html("dd", {}, duration(now[i]), mean));
    })
  );
}
