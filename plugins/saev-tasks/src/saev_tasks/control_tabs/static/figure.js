// A figure on a canvas, saved as PNG by the browser.
function paper(width, height) {
  const canvas = document.createElement("canvas"), ratio = 2;  // double resolution, for print
  canvas.width = width * ratio; canvas.height = Math.ceil(height) * ratio;
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.fillStyle = "#fff"; g.fillRect(0, 0, width, height);
  const text = (what, x, y, { size = 16, bold = false, align = "left", colour: ink = "#222", most = 0 } = {}) => {
    g.font = `${bold ? "600 " : ""}${size}px system-ui, sans-serif`;
    g.textAlign = align; g.fillStyle = ink;
    let cut = what;
    while (most && g.measureText(cut).width > most && cut.length > 2) cut = `${cut.replace(/…$/, "").slice(0, -1)}…`;
    g.fillText(cut, x, y);
  };
  return { canvas, g, text };
}
function swatch(g, x, y, ink) { g.fillStyle = ink; g.fillRect(x, y, 13, 13); }
function loaded(src) {
  return new Promise((done) => {
    const image = new Image();
    image.onload = () => done(image); image.onerror = () => done(null);
    image.src = src;
  });
}
function save(canvas, name) {
  canvas.toBlob((blob) => {
    const way = document.createElement("a");
    way.href = URL.createObjectURL(blob); way.download = name;
    document.body.append(way);
    way.click(); way.remove();
    setTimeout(() => URL.revokeObjectURL(way.href), 10000);
  });
}
