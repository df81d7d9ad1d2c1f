"use strict";
(() => {
  const tip = document.getElementById("tip");
  const units = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
  const texts = {
    seconds: (value) => `${value < 10 ? value.toPrecision(4) : value.toFixed(2)} s`,
    share: (value) => `${(value * 100).toFixed(1)} %`,
    nodes: (value) => String(Math.round(value)),
    rate: (value) => {
      const [size, prefix] = units.find(([size]) => value >= size) ?? [1, ""];
      return `${(value / size).toPrecision(3)} ${prefix}B/s`;
    },
  };

  const hide = () => { tip.hidden = true; };

  const show = (event, title, rows) => {
    const lines = rows.map(([tone, text]) => {
      const line = document.createElement("div");
      if (tone !== null) {
        const mark = document.createElement("i");
        mark.className = `b${tone}`;
        line.append(mark);
      }
      line.append(text);
      return line;
    });
    tip.replaceChildren(title, ...lines);
    tip.hidden = false;
    // Beside the pointer, but within the window.
    const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
    const left = event.clientX + 14 + wide > innerWidth ? event.clientX - 14 - wide : event.clientX + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(0, Math.min(event.clientY + 14, innerHeight - high))}px`;
  };

  // Where the pointer is in the picture's own measure.
  const place = (svg, event) => {
    const box = svg.getBoundingClientRect();
    return (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
  };

  // The value of the last point at or before a moment.
  const at = (line, seconds) => {
    let [low, high] = [0, line.x.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (line.x[middle] <= seconds) { low = middle + 1; } else { high = middle; }
    }
    return low === 0 ? 0 : line.y[low - 1];
  };

  for (const svg of document.querySelectorAll("svg[data-hover]")) {
    const chart = JSON.parse(svg.dataset.hover);
    const cursor = svg.querySelector(".cursor");
    svg.addEventListener("pointerleave", () => { hide(); cursor.style.visibility = "hidden"; });
    svg.addEventListener("pointermove", (event) => {
      const x = Math.min(Math.max(place(svg, event), chart.left), chart.right);
      const seconds = (x - chart.left) / (chart.right - chart.left) * chart.end;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      const rows = chart.lines.map((line) => [line.tone, `${line.name}: ${texts[chart.quantity](at(line, seconds))}`]);
      show(event, texts.seconds(seconds), rows);
    });
  }

  for (const row of document.querySelectorAll("svg .row")) {
    const values = row.dataset.values.split(",");
    const [left, right, end] = [row.dataset.left, row.dataset.right, row.dataset.end].map(Number);
    row.addEventListener("pointerleave", hide);
    row.addEventListener("pointermove", (event) => {
      const share = (place(row.ownerSVGElement, event) - left) / (right - left);
      if (share < 0 || share > 1) { hide(); return; }
      const value = values[Math.min(Math.floor(share * values.length), values.length - 1)];
      show(event, row.dataset.name, [[null, `${value} % at ${texts.seconds(share * end)}`]]);
    });
  }
})();
