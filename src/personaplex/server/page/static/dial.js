/**
 * The dial: the last eight seconds of the conversation around the button, like a clock. The newest moment is at the
 * top; the past goes round with the hand and fades. You are the outer ring, the agent the inner one: who speaks when,
 * and when both do.
 */

const TICKS = 200; // of 40 ms
const REST = 0.04;

export class Dial {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.user = new Float32Array(TICKS);
    this.agent = new Float32Array(TICKS);
    this.calm = matchMedia('(prefers-reduced-motion: reduce)');
    this.drawing = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** How loud both were in the next 40 ms, from 0 to 1. */
  push(user, agent) {
    this.user.copyWithin(1, 0);
    this.agent.copyWithin(1, 0);
    this.user[0] = user;
    this.agent[0] = agent;
    this.request();
  }

  clear() {
    this.user.fill(0);
    this.agent.fill(0);
    this.request();
  }

  request() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw();
    });
  }

  draw() {
    const size = this.canvas.clientWidth;
    const scale = devicePixelRatio || 1;
    if (!size) return;
    if (this.canvas.width !== Math.round(size * scale)) {
      this.canvas.width = this.canvas.height = Math.round(size * scale);
    }
    const style = getComputedStyle(this.canvas);
    const [user, agent, line] = [style.color, style.caretColor, style.outlineColor];
    const g = this.canvas.getContext('2d');
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, size, size);
    g.translate(size / 2, size / 2);
    g.lineCap = 'round';
    g.lineWidth = Math.max(1.5, size / 190);
    const middle = size * 0.365; // between the two rings
    for (let i = 0; i < TICKS; i++) {
      const angle = this.calm.matches ? 0 : (2 * Math.PI * i) / TICKS;
      if (this.calm.matches && i > 0) break;
      const fade = 1 - 0.82 * (i / TICKS);
      this.#tick(g, angle, middle + size * 0.012, size * 0.11, this.user[i], user, line, fade);
      this.#tick(g, angle, middle - size * 0.012, -size * 0.075, this.agent[i], agent, line, fade);
    }
    if (this.calm.matches) this.#rings(g, size, middle, user, agent);
    g.globalAlpha = 1;
  }

  #tick(g, angle, from, reach, level, colour, rest, fade) {
    const loud = level > REST;
    g.globalAlpha = loud ? fade : 0.9;
    g.strokeStyle = loud ? colour : rest;
    const to = from + Math.sign(reach) * 2 + (loud ? reach * level : 0);
    const [x, y] = [Math.sin(angle), -Math.cos(angle)];
    g.beginPath();
    g.moveTo(x * from, y * from);
    g.lineTo(x * to, y * to);
    g.stroke();
  }

  /** Without motion: two rings, as bright as each side is loud. */
  #rings(g, size, middle, user, agent) {
    const rings = [[middle + size * 0.06, this.user[0], user], [middle - size * 0.045, this.agent[0], agent]];
    for (const [radius, level, colour] of rings) {
      g.globalAlpha = 0.2 + 0.8 * level;
      g.strokeStyle = colour;
      g.lineWidth = size * 0.02;
      g.beginPath();
      g.arc(0, 0, radius, 0, 2 * Math.PI);
      g.stroke();
    }
  }
}
