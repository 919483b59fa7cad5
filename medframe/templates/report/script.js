// Reads values off the charts: every chart of one axis follows the pointer, a finger or the arrow keys.
"use strict";
(() => {
  const charts = [...document.querySelectorAll(".chart")].map((figure) => ({
    figure,
    axis: figure.dataset.axis,
    lines: JSON.parse(figure.dataset.lines),
    plot: figure.querySelector(".plot"),
    cursor: figure.querySelector(".cursor"),
    said: figure.querySelector("output"),
  }));
  const nearest = (points, at) => {
    let best = null;
    for (const point of points) {
      if (best === null || Math.abs(point[0] - at) <= Math.abs(best[0] - at)) best = point;
    }
    return best;
  };
  const read = (axis, at) => {
    for (const chart of charts.filter((chart) => chart.axis === axis)) {
      const found = chart.lines.map((line) => [line, nearest(line.p, at)]).filter(([, point]) => point !== null);
      if (found.length === 0) continue;
      const [, here] = found.reduce((a, b) => (Math.abs(b[1][0] - at) < Math.abs(a[1][0] - at) ? b : a));
      chart.cursor.setAttribute("x1", `${here[0] / 10}%`);
      chart.cursor.setAttribute("x2", `${here[0] / 10}%`);
      chart.figure.classList.add("read");
      chart.figure.classList.toggle("far", here[0] > 500);
      chart.said.replaceChildren(document.createTextNode(`${axis === "step" ? "step" : "tokens"} ${here[1]}`));
      for (const [line, point] of found) {
        const text = document.createElement("span");
        text.className = `c${line.c % 6} reading`;
        const elsewhere = point[1] === here[1] ? "" : `, at ${point[1]}`;
        text.textContent = `${line.n} ${point[2]}${elsewhere}`.trim();
        chart.said.append(text);
      }
    }
  };
  for (const { axis, plot } of charts) {
    let at = 0;
    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      at = ((event.clientX - box.left) / box.width) * 1000;
      read(axis, at);
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.tabIndex = 0;
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -10, ArrowRight: 10, Home: -1000, End: 1000 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      at = Math.min(1000, Math.max(0, at + by));
      read(axis, at);
    });
  }
  // What is folded on the screen is on the paper.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
  });
})();
