// Checks a page that tools/explain wrote, with Node.js: its arithmetic against the numbers of the
// library in it and, if there is a Chromium, the page as a person meets it: no error, nothing
// fetched, all of it reached by keyboard, edits answered as network.js alone answers them.
//
//   node tests/explain_page.js PAGE [FOLDER for screenshots]
"use strict";

const fs = require("fs"), os = require("os"), path = require("path");
const {spawn, spawnSync} = require("child_process");

const [page, pictures] = process.argv.slice(2);
const html = fs.readFileSync(page, "utf8");
let failures = 0;
const check = (holds, what) => {
  if (!holds) ++failures, console.log("FAILED  " + what);
};

// ---- The file ----------------------------------------------------------------------------------

const data = JSON.parse(html.match(/<script type="application\/json" id="data">(.*?)<\/script>/s)[1]);
const network = require(path.join(__dirname, "../tools/explain/page/network.js"));
const bound = 1e-4;
const differences = network.compare(data);
for (const [what, difference] of Object.entries(differences)) {
  check(difference <= bound, `${what}: the page is ${difference} from the library`);
}
check(data.edits.length >= 100, `${data.edits.length} edits to compare, expected 100`);
for (const [what, {worst}] of Object.entries(data.checks)) {
  check(worst < 1e-6, `${what}: ${worst} from central differences`);
}
// What is wrong is seen: an answer, the gradient of a tensor, a matrix and its gradient.
const broken = structuredClone(data), {embedded, x0} = broken.record;
broken.edits[0].answer.top[0][1] += 0.01;
broken.checks.tensors.rows[0][4] *= 1.01;
[embedded.value, x0.gradient] = [x0.value, embedded.gradient];
for (const [what, difference] of Object.entries(network.compare(broken))) {
  check(difference > bound, `${what}: what is wrong is not seen`);
}
console.log("arithmetic: " + JSON.stringify(differences));

// ---- A browser, spoken to over a pipe ----------------------------------------------------------

const browserName = ["chromium", "chromium-browser", "google-chrome"].find(
  name => spawnSync(name, ["--version"]).status === 0);

class Browser {
  constructor(profile) {
    this.process = spawn(browserName, ["--headless", "--no-sandbox", "--disable-gpu",
      "--remote-debugging-pipe", "--disable-dev-shm-usage", `--user-data-dir=${profile}`],
      {stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"]});
    this.waiting = new Map();
    this.listeners = [];
    let text = "", count = 0;
    this.process.stdio[4].on("data", chunk => {
      text += chunk;
      const messages = text.split("\0");
      text = messages.pop();
      for (const message of messages.map(JSON.parse)) {
        const {id, result, error} = message;
        if (id === undefined) this.listeners.forEach(listener => listener(message));
        else if (error) this.waiting.get(id).reject(new Error(error.message));
        else this.waiting.get(id).resolve(result);
      }
    });
    this.send = (method, params = {}, sessionId = this.session) => new Promise((resolve, reject) => {
      this.waiting.set(++count, {resolve, reject});
      this.process.stdio[3].write(JSON.stringify({id: count, method, params, sessionId: sessionId || undefined}) + "\0");
    });
  }
  async open() {
    const {targetId} = await this.send("Target.createTarget", {url: "about:blank"});
    const {sessionId} = await this.send("Target.attachToTarget", {targetId, flatten: true});
    this.session = sessionId;
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await this.send(domain + ".enable");
  }
  async evaluate(expression) {
    const {result, exceptionDetails} = await this.send("Runtime.evaluate",
      {expression, returnByValue: true, awaitPromise: true});
    if (exceptionDetails) throw new Error(exceptionDetails.exception.description);
    return result.value;
  }
  async key(key, code) {
    for (const type of ["rawKeyDown", "keyUp"]) {
      await this.send("Input.dispatchKeyEvent", {type, key, code: key, windowsVirtualKeyCode: code});
    }
  }
}

async function screenshots(browser) {
  fs.mkdirSync(pictures, {recursive: true});
  for (const [name, width, scheme] of [["wide", 1500, "light"], ["wide-dark", 1500, "dark"],
                                       ["narrow", 400, "light"], ["narrow-dark", 400, "dark"]]) {
    await browser.send("Emulation.setDeviceMetricsOverride",
      {width, height: 900, deviceScaleFactor: 1, mobile: width < 500});
    await browser.send("Emulation.setEmulatedMedia",
      {features: [{name: "prefers-color-scheme", value: scheme}]});
    const {data: image} = await browser.send("Page.captureScreenshot",
      {captureBeyondViewport: true, clip: {x: 0, y: 0, width, height: 6000, scale: 1}});
    fs.writeFileSync(path.join(pictures, name + ".png"), Buffer.from(image, "base64"));
    const wider = await browser.evaluate("document.documentElement.scrollWidth - innerWidth");
    check(wider <= 0, `${name}: the page is ${wider} pixels wider than the window`);
  }
}

async function inBrowser(browser) {
  const errors = [], requests = [];
  browser.listeners.push(({method, params}) => {
    if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.exception.description);
    if (method === "Runtime.consoleAPICalled" && params.type === "error") errors.push("console.error");
    if (method === "Log.entryAdded" && params.entry.level === "error") errors.push(params.entry.text);
    if (method === "Network.requestWillBeSent") requests.push(params.request.url);
  });
  await browser.open();
  await browser.send("Page.navigate", {url: "file://" + path.resolve(page)});
  for (let i = 0; i < 600 && !await browser.evaluate("document.body?.dataset.ready ?? ''"); ++i) {
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  check(await browser.evaluate("document.body.dataset.ready") === "yes", "the page gets ready");
  const fetched = requests.filter(url => !url.startsWith("file://") && !url.startsWith("data:"));
  check(fetched.length === 0 && requests.length >= 1, "nothing is fetched: " + fetched);

  // What it says about itself is what was found here.
  const said = JSON.parse(await browser.evaluate("$('comparison').dataset.differences"));
  check(Math.max(...Object.values(said)) <= bound, "the page says that it agrees: " + JSON.stringify(said));

  // By keyboard: Tab reaches every control, arrows read a matrix.
  const controls = await browser.evaluate(`(() => {
    const all = [...document.querySelectorAll("a[href], button, input, select, summary, canvas[tabindex]")]
      .filter(e => !e.disabled && e.getClientRects().length > 0 && !(e.type === "radio" && !e.checked));
    all.forEach((e, i) => { e.dataset.control = i; });
    document.activeElement?.blur();
    return all.length;
  })()`);
  const reached = new Set();
  for (let i = 0; i < controls + 40 && reached.size < controls; ++i) {
    await browser.key("Tab", 9);
    const at = await browser.evaluate("document.activeElement?.dataset.control");
    if (at !== undefined && at !== null) reached.add(at);
  }
  check(reached.size === controls, `Tab reaches ${reached.size} of ${controls} controls`);
  await browser.evaluate("document.querySelector('#inspector canvas').focus()");
  await browser.key("ArrowRight", 39);
  const first = await browser.evaluate("document.querySelector('#inspector canvas + p').textContent");
  check(first.startsWith("[0, 1] ="), "an arrow key reads a number: " + first);

  // Numbers on the page are those of the library.
  const loss = await browser.evaluate("$('verdict').textContent.match(/loss ([0-9]+[.][0-9]+)/)[1]");
  check(Math.abs(Number(loss) - data.loss) < 1e-4, `the page says loss ${loss}, the library ${data.loss}`);
  const record = network.recorded(data.record);
  for (const button of await browser.evaluate(
    "[...document.querySelectorAll('#ladder button')].map(b => [b.dataset.name, b.className])")) {
    const [name, way] = button;
    const shown = await browser.evaluate(`(() => {
      document.querySelector('#ladder button.${way}[data-name="${name}"]').click();
      return document.querySelector("#inspector tr td").textContent;
    })()`);
    const numbers = (way === "forward" ? record.all : record.gradients)[name].data;
    const theirs = name !== "scores" ? numbers[0]
      : numbers.reduce((a, b) => Math.abs(b) > Math.abs(a) ? b : a);  // the largest stands first
    check(Math.abs(Number(shown) - theirs) <= 1e-4 + 1e-2 * Math.abs(theirs),
          `${way} ${name}: the page shows ${shown}, the library has ${theirs}`);
  }

  // Edits made by a person's clicks are answered as by network.js alone.
  const w = network.tensors(data.weights);
  const question = structuredClone(data.question);
  for (const [click, edit] of [
    ["$('history').tBodies[0].rows[0].querySelectorAll('input')[1].click()",
     () => question.dropped.push(0)],
    ["$('heads').querySelector('input').click()", () => question.off.push([0, 0])],
    ["{ const t = $('temperature'); t.value = 1.5; t.dispatchEvent(new Event('input')); }",
     () => { question.temperature = 1.5; }],
    ["$('history').tBodies[0].rows[2].querySelector('input').click()",
     () => { question.place = 2; }]]) {
    await browser.evaluate(click);
    edit();
    const mine = network.answer(network.forward(data.model, w, data.history, question), data.history,
                                question);
    const said = await browser.evaluate("$('verdict').textContent.match(/rank (\\d+) .* loss ([0-9]+[.][0-9]+)/).slice(1).map(Number)");
    check(said[0] === mine.rank && Math.abs(said[1] - mine.loss) < 1e-3,
          `after ${click}: rank ${said[0]} loss ${said[1]}, expected ${mine.rank} and ${mine.loss}`);
  }
  await browser.evaluate("$('edits').reset()");
  const again = await browser.evaluate("$('verdict').textContent.match(/loss ([0-9]+[.][0-9]+)/)[1]");
  check(again === loss, `after all is taken back: loss ${again}, at first ${loss}`);
  if (pictures) await screenshots(browser);
  check(errors.length === 0, "no error in the console: " + errors.join("; "));
  console.log(`browser: ${controls} controls, ${requests.length} request (the page itself)`);
}

async function main() {
  if (!browserName) {
    console.log("no Chromium: the page was not opened");
    return;
  }
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), "bert4rec-browser-"));
  const browser = new Browser(profile);
  try {
    await inBrowser(browser);
  } finally {
    const gone = new Promise(resolve => browser.process.on("exit", resolve));
    await browser.send("Browser.close", {}, "").catch(() => browser.process.kill());
    await gone;
    fs.rmSync(profile, {recursive: true, force: true, maxRetries: 20, retryDelay: 200});
  }
}

main().catch(error => check(false, String(error))).then(() => process.exit(failures > 0 ? 1 : 0));
