// A WebSocket echo server on `ws`: node ws_echo.cjs PORT. A message `close CODE` makes it close instead.
const { WebSocketServer } = require("ws");

new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]) }).on("connection", (socket) => {
  socket.on("message", (data, isBinary) => {
    const asked = !isBinary && /^close (\d+)$/.exec(data.toString());
    if (asked) socket.close(Number(asked[1]), "as asked");
    else socket.send(data, { binary: isBinary });
  });
});
process.on("SIGINT", () => process.exit(0));
