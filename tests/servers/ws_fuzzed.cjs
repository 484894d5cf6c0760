// An echo server on `ws` for a fuzzing client, node ws_fuzzed.cjs PORT: it outlives protocol errors
// and agrees to compression.
const { WebSocketServer } = require("ws");

const options = { host: "127.0.0.1", port: Number(process.argv[2]), maxPayload: 1 << 28, maxFragments: 0, maxBufferedChunks: 0, perMessageDeflate: true };
new WebSocketServer(options).on("connection", (socket) => {
  socket.on("error", () => {}); // ws closes with the right code by itself
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
process.on("SIGINT", () => process.exit(0));
