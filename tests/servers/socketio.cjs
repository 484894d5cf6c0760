// One node of a Socket.IO cluster: node socketio.cjs PORT NAME. `echo` is acknowledged with its name.
const { createServer } = require("http");
const { Server } = require("socket.io");

const [port, name] = process.argv.slice(2);
const web = createServer();
new Server(web, { maxHttpBufferSize: 1e7 }).on("connection", (socket) => {
  socket.on("echo", (data, acknowledge) =>
    acknowledge({
      name,
      data,
      began: socket.handshake.query.transport,
      transport: socket.conn.transport.name,
      address: socket.handshake.headers["x-forwarded-for"],
    }),
  );
});
web.listen(Number(port), "127.0.0.1");
process.on("SIGINT", () => process.exit(0));
