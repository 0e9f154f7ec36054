"use strict";
const at = id => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const canvas = at("stage");
const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
const FPS = 12;

const add = (a, b, s = 1) => a.map((v, i) => v + s * b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = a => { const n = Math.hypot(...a) || 1; return a.map(v => v / n); };

// A camera: eye, and right, up, back as unit vectors. The file's poses are OpenCV's: right, down, forward by columns.
const posed = p => ({ eye: [p[3], p[7], p[11]], right: [p[0], p[4], p[8]], up: [-p[1], -p[5], -p[9]], back: [-p[2], -p[6], -p[10]] });
const path = data.poses.map(posed);
const around = () => Math.hypot(...data.extent);
const outside = () => facing(add(data.pivot, unit([0.4, 0.3, 1]), around()), data.pivot);
function facing(eye, pivot) {
  const back = unit(add(eye, pivot, -1));
  const side = cross([0, 1, 0], back);
  const right = Math.hypot(...side) < 1e-4 ? camera.right : unit(side);
  return { eye, right, back, up: cross(back, right) };
}

let camera = path[0] || { right: [1, 0, 0] };
if (!path.length) camera = outside();
let lens = data.lenses[0] || [1, data.aspect, 0.5, 0.5];
let pivot = data.pivot, view = 0, timer = 0, moving = 0, asked = false, standing = false;
const reach = () => Math.max(Math.hypot(...add(camera.eye, pivot, -1)), 1e-6);
// What lies ahead of a camera, as far as the scene's middle is.
function ahead() {
  const far = Math.max(dot(add(camera.eye, data.pivot, -1), camera.back), 0.05 * around());
  pivot = add(camera.eye, camera.back, -far);
}

function matrices() {
  const w = canvas.width, h = canvas.height, wide = w / h > data.aspect;
  // The whole picture of the view fits: the canvas shows more on two sides.
  const pw = wide ? h * data.aspect : w, ph = wide ? h : w / data.aspect;
  const near = reach() * 0.004, far = reach() + 20 * around();
  const fx = 2 * lens[0] * pw / w, fy = 2 * lens[1] * ph / h;
  const cx = (lens[2] - 0.5) * 2 * pw / w, cy = (0.5 - lens[3]) * 2 * ph / h;
  const { eye, right, up, back } = camera;
  const rows = [right, up, back].map(axis => [...axis, -dot(axis, eye)]);
  const mix = (a, b, s, t) => a.map((v, i) => s * v + t * b[i]);
  const clip = [mix(rows[0], rows[2], fx, -cx), mix(rows[1], rows[2], fy, -cy),
    rows[2].map((v, i) => (far + near) / (near - far) * v + (i === 3 ? 2 * far * near / (near - far) : 0)), rows[2].map(v => -v)];
  return { clip: [0, 1, 2, 3].flatMap(c => clip.map(row => row[c])), focal: lens[1] * ph };
}

const POINT = `attribute vec3 place; attribute vec4 paint; uniform mat4 clip; uniform vec3 low, extent; uniform float size, least;
varying vec3 colour; void main() { gl_Position = clip * vec4(low + extent * place, 1.0); colour = paint.rgb;
gl_PointSize = clamp(size / gl_Position.w, 1.0, 48.0); if (paint.a < least) gl_Position = vec4(2.0, 2.0, 2.0, 1.0); }`;
const LINE = `attribute vec3 place; attribute float number; uniform mat4 clip; uniform float chosen; varying vec3 colour;
void main() { gl_Position = clip * vec4(place, 1.0); colour = abs(number - chosen) < 0.5 ? vec3(1.0, 0.65, 0.3) : vec3(0.5, 0.74, 1.0); }`;
const PAINT = "precision mediump float; varying vec3 colour; void main() { gl_FragColor = vec4(colour, 1.0); }";

function program(vertex) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, PAINT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}
function buffer(values) {
  const made = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, made); gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
  return made;
}
function feed(program, name, source, count, kind, normalized) {
  const place = gl.getAttribLocation(program, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, source); gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, count, kind, normalized, 0, 0);
}

function frusta() {
  const corners = [], numbers = [], long = 0.06 * around();
  path.forEach((p, n) => {
    const [fx, fy, cx, cy] = data.lenses[n];
    const tip = (x, y) => [0, 1, 2].map(i => p.eye[i] + long * ((x - cx) / fx * p.right[i] - (y - cy) / fy * p.up[i] - p.back[i]));
    const four = [tip(0, 0), tip(1, 0), tip(1, 1), tip(0, 1)];
    four.forEach((a, i) => corners.push(...p.eye, ...a, ...a, ...four[(i + 1) % 4]));
    for (let i = 0; i < 16; i++) numbers.push(n);
    if (n) { corners.push(...path[n - 1].eye, ...p.eye); numbers.push(-1, -1); }
  });
  return { corners: buffer(new Float32Array(corners)), numbers: buffer(new Float32Array(numbers)), count: numbers.length };
}

let points, lines, places, paints, cameras;
function begin() {
  points = program(POINT); lines = program(LINE);
  const raw = bytes(data.positions);
  places = buffer(new Uint16Array(raw.buffer, 0, raw.length / 2)); paints = buffer(bytes(data.colours));
  cameras = frusta();
  gl.enable(gl.DEPTH_TEST); gl.clearColor(0.086, 0.086, 0.082, 1);
}
function draw() {
  asked = false;
  const dense = Math.min(devicePixelRatio || 1, 2), w = Math.round(innerWidth * dense), h = Math.round(innerHeight * dense);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  gl.viewport(0, 0, w, h); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  const { clip, focal } = matrices();
  // Positions of six bytes each: read as three normalised 16-bit numbers.
  gl.useProgram(points);
  feed(points, "place", places, 3, gl.UNSIGNED_SHORT, true); feed(points, "paint", paints, 4, gl.UNSIGNED_BYTE, true);
  gl.uniformMatrix4fv(gl.getUniformLocation(points, "clip"), false, clip);
  gl.uniform3fv(gl.getUniformLocation(points, "low"), data.low); gl.uniform3fv(gl.getUniformLocation(points, "extent"), data.extent);
  gl.uniform1f(gl.getUniformLocation(points, "size"), at("size").value * data.spacing * focal);
  gl.uniform1f(gl.getUniformLocation(points, "least"), at("trust").value / 100);
  // While it moves, an even part of a large cloud: the order in the file is random.
  gl.drawArrays(gl.POINTS, 0, moving ? Math.min(data.count, 300000) : data.count);
  // Seen from its own camera, a frustum is a frame around the picture.
  if (at("paths").checked && cameras.count && !standing) {
    gl.useProgram(lines);
    feed(lines, "place", cameras.corners, 3, gl.FLOAT, false); feed(lines, "number", cameras.numbers, 1, gl.FLOAT, false);
    gl.uniformMatrix4fv(gl.getUniformLocation(lines, "clip"), false, clip);
    gl.uniform1f(gl.getUniformLocation(lines, "chosen"), view);
    gl.drawArrays(gl.LINES, 0, cameras.count);
  }
}
function ask() { if (gl && !asked) { asked = true; requestAnimationFrame(draw); } }
function moved() { standing = false; clearTimeout(moving); moving = setTimeout(() => { moving = 0; ask(); }, 150); ask(); }

function show(number, fly = true) {
  view = number; at("view").value = number;
  at("frame").src = data.frames[number];
  at("which").textContent = `view ${number + 1} of ${data.frames.length}`;
  if (fly && path.length) { camera = path[number]; lens = data.lenses[number]; standing = true; ahead(); }
  ask();
}
function stop() { clearInterval(timer); timer = 0; at("play").textContent = "Play"; at("play").setAttribute("aria-pressed", "false"); }
function play() {
  if (timer) return stop();
  at("play").textContent = "Pause"; at("play").setAttribute("aria-pressed", "true");
  let step = 1;
  timer = setInterval(() => {  // there and back again, since a path's end is seldom where it began
    if (view + step < 0 || view + step >= data.frames.length) step = -step;
    if (data.frames.length > 1) show(view + step);
  }, 1000 / FPS);
}

function turned(dx, dy) {
  const arm = add(camera.eye, pivot, -1), far = Math.hypot(...arm);
  const yaw = Math.atan2(arm[0], arm[2]) - dx, pitch = Math.max(-1.5, Math.min(1.5, Math.asin(arm[1] / far) + dy));
  camera = facing(add(pivot, [Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch)], far), pivot);
  moved();
}
function shifted(dx, dy) {
  const by = reach() / innerHeight / lens[1];
  const step = add(camera.right.map(v => -v * dx * by), camera.up, dy * by);
  camera = { ...camera, eye: add(camera.eye, step) }; pivot = add(pivot, step);
  moved();
}
function nearer(factor) {
  camera = { ...camera, eye: add(pivot, add(camera.eye, pivot, -1), Math.max(factor, 1e-3)) };
  moved();
}

const fingers = new Map();
canvas.addEventListener("pointerdown", e => { stop(); canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.clientX, e.clientY]); });
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, e => fingers.delete(e.pointerId));
canvas.addEventListener("pointermove", e => {
  const before = fingers.get(e.pointerId);
  if (!before) return;
  const now = [e.clientX, e.clientY], dx = now[0] - before[0], dy = now[1] - before[1];
  const other = [...fingers].find(([id]) => id !== e.pointerId);
  fingers.set(e.pointerId, now);
  if (other) {
    const apart = p => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1;
    nearer(apart(before) / apart(now)); shifted(dx / 2, dy / 2);
  } else if (e.shiftKey || e.buttons & 2) shifted(dx, dy);
  else turned(dx * 0.006, dy * 0.006);
});
canvas.addEventListener("contextmenu", e => e.preventDefault());
canvas.addEventListener("wheel", e => { e.preventDefault(); stop(); nearer(Math.exp(Math.max(-100, Math.min(100, e.deltaY)) * 0.002)); }, { passive: false });
const KEYS = { ArrowLeft: () => turned(-0.06, 0), ArrowRight: () => turned(0.06, 0), ArrowUp: () => turned(0, 0.06), ArrowDown: () => turned(0, -0.06),
  "+": () => nearer(0.9), "=": () => nearer(0.9), "-": () => nearer(1.1) };
canvas.addEventListener("keydown", e => { if (KEYS[e.key]) { e.preventDefault(); stop(); KEYS[e.key](); } });

at("view").max = data.frames.length - 1;
at("view").addEventListener("input", e => { stop(); show(Number(e.target.value)); });
at("size").addEventListener("input", ask);
at("trust").addEventListener("input", e => { at("share").value = `${e.target.value} %`; ask(); });
at("paths").addEventListener("change", ask);
at("play").addEventListener("click", play);
at("home").addEventListener("click", () => { stop(); if (!path.length) camera = outside(); show(0); });
at("panel").addEventListener("submit", e => e.preventDefault());
addEventListener("resize", ask);
// A browser may take the graphics memory back, on phones above all.
canvas.addEventListener("webglcontextlost", e => e.preventDefault());
canvas.addEventListener("webglcontextrestored", () => { begin(); ask(); });

if (gl) begin();
else { at("trouble").textContent = "This browser has no WebGL, so the points cannot be drawn; the views still play."; at("trouble").hidden = false; }
show(0);
