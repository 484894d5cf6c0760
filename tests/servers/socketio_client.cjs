// Socket.IO clients: node socketio_client.cjs URL TRANSPORTS MESSAGES ADDRESS...
// One client from each address, by these transports (polling,websocket: until the upgrade is done), all
// at a time. Prints {address: answers} once each has had its messages echoed.
const { Agent } = require("http");
const { io } = require("socket.io-client");

const [url, transports, messages, ...addresses] = process.argv.slice(2);

const client = (localAddress) =>
  new Promise((resolve, reject) => {
    const agent = new Agent({ localAddress, keepAlive: true });
    const socket = io(url, { transports: transports.split(","), agent, reconnection: false, forceNew: true });
    const upgraded = new Promise((done) => socket.io.engine.once("upgrade", done));
    const ask = (data) => new Promise((answer) => socket.emit("echo", data, answer));
    socket.on("connect_error", reject);
    socket.on("disconnect", (reason) => reject(new Error(reason)));
    socket.on("connect", async () => {
      const answers = [];
      for (let at = 0; at < Number(messages); at++) {
        if (at === 1 && transports === "polling,websocket") await upgraded;
        const data = `${localAddress} ${at} ` + "x".repeat(at * 1000);
        const answer = await ask(data);
        if (answer.data !== data) reject(new Error("echoed something else"));
        answers.push({ ...answer, data: undefined });
      }
      socket.off("disconnect");
      socket.disconnect();
      resolve([localAddress, answers]);
    });
  });

Promise.all(addresses.map(client)).then(
  (all) => {
    console.log(JSON.stringify(Object.fromEntries(all)));
    process.exit(0);
  },
  (error) => {
    console.error(error.stack, error.description, error.context?.responseText);
    process.exit(1);
  },
);
