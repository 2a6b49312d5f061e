// Every text that is seen and its contrast with what is behind it (WCAG 2), those below a limit; in SVG too.
(limit) => {
  const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const parse = (text) => {
    const numbers = (text.match(/[\d.]+/g) || []).map(Number);
    return numbers.length < 3 ? [0, 0, 0, 0] : [...numbers.slice(0, 3), numbers[3] ?? 1];
  };
  const over = (top, below) => below.map((value, i) => top[3] * top[i] + (1 - top[3]) * value);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const paint = (shape) => {
    const style = getComputedStyle(shape);
    const [r, g, b, a] = parse(style.fill);
    const hidden = style.fill === "none" || shape.closest("defs, clipPath");
    return [r, g, b, hidden ? 0 : a * style.fillOpacity * style.opacity];
  };
  const behindText = (text, shapes) => {
    const box = text.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    let below = behind(text.ownerSVGElement.parentElement);
    for (const { shape, rect } of shapes) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      if (x < rect.left || x > rect.right || y < rect.top || y > rect.bottom) continue;
      const point = new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse());
      if (shape.isPointInFill(point)) below = over(paint(shape), below);
    }
    return below;
  };
  const found = [];
  let count = 0;
  const check = (element, text, colour, below) => {
    count += 1;
    const value = contrast(over(parse(colour), below), below);
    if (value < limit) found.push(`${value.toFixed(2)} ${colour} on ${below.map(Math.round)}: ${text.trim().slice(0, 60)}`);
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const element = nodes.currentNode.parentElement;
    const unseen = element.closest("svg, .unseen, .skip, style, script") || !element.checkVisibility();
    if (unseen || !nodes.currentNode.data.trim()) continue;
    check(element, nodes.currentNode.data, getComputedStyle(element).color, behind(element));
  }
  for (const svg of document.querySelectorAll("svg")) {
    const drawn = [...svg.querySelectorAll("path, rect, circle, polygon")];
    const shapes = drawn.map((shape) => ({ shape, rect: shape.getBoundingClientRect() }));
    for (const text of svg.querySelectorAll("text"))
      check(text, text.textContent, getComputedStyle(text).fill, behindText(text, shapes));
  }
  return { count, found };
}
