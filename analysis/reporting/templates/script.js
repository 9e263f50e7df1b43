"use strict";
// Tables are sorted by the column whose head is pressed, each part of a table for itself; what is not known stays last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), row = head.parentElement, place = [...row.children].indexOf(head);
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const order = (one, two) => {
      const [a, b] = [one, two].map((line) => line.children[place]);
      if (head.classList.contains("text")) return (rising ? 1 : -1) * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
      if (!("value" in a.dataset) || !("value" in b.dataset)) return ("value" in b.dataset) - ("value" in a.dataset);
      const [x, y] = [a, b].map((cell) => Number(cell.dataset.value.replace("inf", "Infinity")));
      return x === y ? 0 : (rising ? 1 : -1) * (x < y ? -1 : 1);
    };
    for (const body of row.closest("table").tBodies) {
      const lines = [...body.rows].filter((line) => !line.classList.contains("part"));
      // Names that were left out below an equal one are shown again.
      for (const line of lines) for (const cell of line.children) cell.classList.remove("again");
      body.append(...lines.sort(order));
    }
  });
}
// A table that goes on to the right says so.
const cue = () => {
  for (const part of document.querySelectorAll(".scroll")) {
    const left = part.scrollWidth - part.clientWidth - part.scrollLeft;
    part.parentElement.classList.toggle("more", left > 2);
  }
};
for (const part of document.querySelectorAll(".scroll")) part.addEventListener("scroll", cue);
for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", cue);
addEventListener("resize", cue);
cue();
// One switch for all tables.
for (const box of document.querySelectorAll(".intervals")) {
  box.addEventListener("change", () => {
    for (const other of document.querySelectorAll(".intervals")) other.checked = box.checked;
    cue();
  });
}
// A link to what is folded away opens it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// Values of the lines of a picture under the pointer.
for (const figure of document.querySelectorAll("figure[data-values]")) {
  const panels = JSON.parse(figure.dataset.values), frame = figure.querySelector(".frame");
  const hair = document.createElement("div"), values = document.createElement("div");
  hair.className = "hair";
  values.className = "values";
  const leave = () => { hair.remove(); values.remove(); };
  const move = (event) => {
    const area = frame.getBoundingClientRect();
    const across = (event.clientX - area.left) / area.width, down = (event.clientY - area.top) / area.height;
    const panel = panels.find(({ box }) => across >= box[0] && across <= box[2] && down >= box[1] && down <= box[3]);
    if (!panel) return leave();
    const { box, x, lines, label } = panel;
    const at = x[0] + ((x[1] - x[0]) * (across - box[0])) / (box[2] - box[0]);
    const nearest = (line) => line.x.reduce((best, value, place) => (Math.abs(value - at) < Math.abs(line.x[best] - at) ? place : best), 0);
    const read = lines.map((line) => [line.name, line.y[nearest(line)]]).filter(([, y]) => y !== null).sort((a, b) => b[1] - a[1]);
    const text = [`${label}: ${Number(at.toPrecision(3))}`, ...read.map(([name, y]) => `${Number(y.toPrecision(4))}  ${name}`)];
    values.replaceChildren(...text.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    frame.append(hair, values);
    Object.assign(hair.style, { left: `${100 * across}%`, top: `${100 * box[1]}%`, height: `${100 * (box[3] - box[1])}%` });
    const right = across > 0.5;
    Object.assign(values.style, { left: right ? "auto" : `calc(${100 * across}% + 12px)`, right: right ? `calc(${100 * (1 - across)}% + 12px)` : "auto", top: `${100 * box[1]}%` });
  };
  frame.addEventListener("pointermove", move);
  frame.addEventListener("pointerdown", move);
  frame.addEventListener("pointerleave", leave);
}
