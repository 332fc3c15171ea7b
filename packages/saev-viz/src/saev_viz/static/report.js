"use strict";
(() => {
  const cards = () => [...document.querySelectorAll(".card")];
  const list = document.getElementById("cards");
  const by = (id) => document.getElementById(id);

  by("sort")?.addEventListener("change", (event) => {
    const [key, way] = event.target.value.split(" ");
    const sign = way === "up" ? 1 : -1;
    list.append(...cards().sort((a, b) => sign * (a.dataset[key] - b.dataset[key])));
  });
  by("opacity")?.addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--opacity", event.target.value / 100);
  });
  const go = (number) => {
    const card = by("f" + number);
    if (card) { location.hash = "f" + number; card.querySelector("h3 a").focus({ preventScroll: true }); }
    return Boolean(card);
  };
  by("find")?.addEventListener("change", (event) => {
    const known = event.target.value === "" || go(event.target.value);
    by("found").textContent = known ? "" : "not in this gallery";
  });
  document.addEventListener("click", (event) => {
    const frame = event.target.closest(".frame");
    if (frame) frame.setAttribute("aria-pressed", frame.getAttribute("aria-pressed") !== "true");
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "h") {
      const slider = by("opacity");
      slider.value = slider.value > 0 ? 0 : 100;
      slider.dispatchEvent(new Event("input"));
    }
    if (event.key !== "j" && event.key !== "k") return;
    const all = cards();
    const here = all.findIndex((card) => card.contains(document.activeElement) || "#" + card.id === location.hash);
    const next = all[Math.min(all.length - 1, Math.max(0, here + (event.key === "j" ? 1 : -1)))];
    if (next) go(next.id.slice(1));
  });

  const chart = by("scatter");
  const data = by("scatter-data") && JSON.parse(by("scatter-data").textContent);
  if (chart && data) {
    const tip = by("tip");
    const near = by("near");
    let found = -1;
    const locate = (event) => {
      const box = chart.getBoundingClientRect();
      const scale = chart.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale;
      const y = (event.clientY - box.top) * scale;
      let best = (16 * Math.max(1, scale)) ** 2;
      found = -1;
      for (let i = 0; i < data.id.length; i++) {
        const d = (data.x[i] - x) ** 2 + (data.y[i] - y) ** 2 - (by("f" + data.id[i]) ? 40 : 0);
        if (d < best) { best = d; found = i; }
      }
      tip.style.display = found < 0 ? "none" : "block";
      near.setAttribute("cx", found < 0 ? -20 : data.x[found]);
      near.setAttribute("cy", found < 0 ? -20 : data.y[found]);
      if (found < 0) return;
      const shown = by("f" + data.id[found]);
      tip.textContent = "Feature " + data.id[found] + (shown ? " · click to show it" : " · not in the gallery: --set report.include=[" + data.id[found] + "]");
      tip.style.left = Math.min(box.width - 110, Math.max(110, data.x[found] / scale)) + "px";
      tip.style.top = data.y[found] / scale + "px";
    };
    chart.addEventListener("pointermove", locate);
    chart.addEventListener("pointerleave", () => { tip.style.display = "none"; near.setAttribute("cx", -20); });
    chart.addEventListener("click", (event) => { locate(event); if (found >= 0) go(data.id[found]); });
  }
})();
