// A WebSocket client on `ws`: node ws_client.cjs URL TUNNELS MESSAGES SIZE
// Opens all tunnels, then has every one of them echo its messages (text and binary in turns), pings,
// and closes with 1000. Prints {"echoed", "pongs", "codes": {code: times}} once all are closed.
const { randomBytes } = require("crypto");
const WebSocket = require("ws");

const [url, tunnels, messages, size] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const result = { echoed: 0, pongs: 0, codes: {} };
let opened = 0;
let closed = 0;

const fail = (why) => {
  console.error(why);
  process.exit(1);
};

const sockets = Array.from({ length: tunnels }, () => {
  const socket = new WebSocket(url);
  let sent;
  let left = messages;
  const next = () => {
    const binary = left % 2 === 0;
    sent = binary ? randomBytes(size) : randomBytes(size / 2).toString("hex");
    socket.send(sent);
  };
  socket.start = next;
  socket.on("error", (error) => fail(error.stack));
  socket.on("open", () => {
    // All tunnels are open at the same time before the first of them speaks.
    if (++opened === tunnels) sockets.forEach((each) => each.start());
  });
  socket.on("message", (data, isBinary) => {
    if (isBinary !== Buffer.isBuffer(sent) || !data.equals(Buffer.from(sent))) fail("echoed something else");
    result.echoed += 1;
    left -= 1;
    if (left > 0) next();
    else socket.ping("still there?");
  });
  socket.on("pong", (data) => {
    if (data.toString() !== "still there?") fail("a pong of another ping");
    result.pongs += 1;
    socket.close(1000);
  });
  socket.on("close", (code) => {
    result.codes[code] = (result.codes[code] || 0) + 1;
    closed += 1;
    if (closed === tunnels) console.log(JSON.stringify(result));
  });
  return socket;
});
