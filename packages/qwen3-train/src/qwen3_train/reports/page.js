// Shows the values of all curves at the step under the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const series = JSON.parse(chart.dataset.series);
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor");
  const marks = chart.querySelectorAll(".mark");
  const box = document.createElement("div");
  box.className = "values";
  box.hidden = true;
  chart.append(box);
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][2] < x) low = middle; else high = middle;
    }
    return x - points[low][2] < points[high][2] - x ? points[low] : points[high];
  };
  const hide = () => {
    box.hidden = true;
    for (const each of [cursor, ...marks]) each.style.visibility = "hidden";
  };
  chart.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
    const found = series.map((each) => nearest(each.points, x));
    const at = found.reduce((best, point) => (Math.abs(point[2] - x) < Math.abs(best[2] - x) ? point : best));
    cursor.setAttribute("x1", at[2]);
    cursor.setAttribute("x2", at[2]);
    cursor.style.visibility = "visible";
    box.replaceChildren(`step ${at[0]}`);
    found.forEach((point, number) => {
      // A curve says something where it has a point within a few pixels of the cursor.
      const isNear = Math.abs(point[2] - at[2]) < 8;
      marks[number].style.visibility = isNear ? "visible" : "hidden";
      if (!isNear) return;
      marks[number].setAttribute("cx", point[2]);
      marks[number].setAttribute("cy", point[3]);
      const line = document.createElement("div"), name = document.createElement("i");
      name.className = `c${series[number].colour}`;
      name.textContent = `${series[number].name} `;
      const value = Math.abs(point[1]) < 1e-3 && point[1] ? point[1].toExponential(3) : Number(point[1].toPrecision(6));
      line.append(name, String(value), point[0] === at[0] ? "" : ` (step ${point[0]})`);
      box.append(line);
    });
    box.hidden = false;
    const isRight = x > svg.viewBox.baseVal.width / 2;
    box.style.left = isRight ? "" : `${(at[2] / svg.viewBox.baseVal.width) * 100 + 2}%`;
    box.style.right = isRight ? `${100 - (at[2] / svg.viewBox.baseVal.width) * 100 + 2}%` : "";
  });
  chart.addEventListener("pointerleave", hide);
}
