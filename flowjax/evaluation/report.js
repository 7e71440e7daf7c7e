"use strict";
// The page is whole without this script. It adds: figures under the pointer, lines that a click hides, a slider for samples.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const lines = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const box = svg.viewBox.baseVal;
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor hidden");
  cursor.setAttribute("y1", 10);
  cursor.setAttribute("y2", svg.dataset.bottom);
  svg.append(cursor);
  const tip = document.createElement("div");
  tip.className = "tip hidden";
  figure.append(tip);
  const hidden = new Set();

  const show = (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * box.width;
    const rows = [];
    let at = null;
    for (const line of lines) {
      if (hidden.has(line.line) || !line.points.length) continue;
      const near = line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      at = at === null || Math.abs(near[0] - x) < Math.abs(at[0] - x) ? near : at;
      rows.push([line.name, near]);
    }
    if (at === null) return hide();
    cursor.setAttribute("x1", at[0]);
    cursor.setAttribute("x2", at[0]);
    tip.textContent = "";
    const head = document.createElement("b");
    head.textContent = at[2];
    tip.append(head);
    for (const [name, point] of rows) {
      const row = document.createElement("div");
      row.textContent = `${name}  ${point[3]}`;
      tip.append(row);
    }
    tip.classList.remove("hidden");
    cursor.classList.remove("hidden");
    const outer = figure.getBoundingClientRect();
    const left = frame.left - outer.left + (at[0] / box.width) * frame.width;
    const over = left + 12 + tip.offsetWidth > outer.width;
    tip.style.left = `${Math.max(4, over ? left - 12 - tip.offsetWidth : left + 12)}px`;
    tip.style.top = `${frame.top - outer.top + 8}px`;
  };
  const hide = () => {
    tip.classList.add("hidden");
    cursor.classList.add("hidden");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);

  for (const button of figure.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const index = Number(button.dataset.toggle);
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      if (off) hidden.add(index);
      else hidden.delete(index);
      for (const part of svg.querySelectorAll(`[data-line="${index}"]`)) part.classList.toggle("hidden", off);
    });
  }
}

for (const film of document.querySelectorAll("[data-film]")) {
  const frames = [...film.querySelectorAll(".strip figure")];
  const picture = film.querySelector(".stage img");
  const caption = film.querySelector(".stage figcaption");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: frames.length - 1, step: 1, value: frames.length - 1 });
  slider.setAttribute("aria-label", "Step of the samples shown");
  const choose = (index) => {
    const image = frames[index].querySelector("img");
    picture.src = image.src;
    picture.alt = image.alt;
    caption.textContent = frames[index].querySelector("figcaption").textContent;
    slider.value = index;
    slider.setAttribute("aria-valuetext", caption.textContent);
    frames.forEach((frame, i) => frame.classList.toggle("now", i === index));
  };
  slider.addEventListener("input", () => choose(Number(slider.value)));
  frames.forEach((frame, index) => frame.addEventListener("click", () => choose(index)));
  if (frames.length > 1) film.querySelector(".stage").after(slider);
  choose(frames.length - 1);
}
