// An echo client on `ws` for a fuzzing server of Autobahn's protocol: node ws_fuzzed_client.cjs URL AT_ONCE
// Runs every case that the server has, AT_ONCE of them side by side, then says that it is done.
const WebSocket = require("ws");

const [url, atOnce] = [process.argv[2], Number(process.argv[3])];

const fail = (why) => {
  console.error(why);
  process.exit(1);
};

// Ends with what was last received, once the socket is closed.
const converse = (path, echoes) =>
  new Promise((resolve) => {
    const socket = new WebSocket(url + path, { maxPayload: 1 << 28, maxFragments: 0, maxBufferedChunks: 0, perMessageDeflate: true });
    let last;
    socket.on("error", (error) => {
      if (!echoes) fail(`${path}: ${error.stack}`);
    });
    socket.on("message", (data, isBinary) => {
      last = data;
      if (echoes) socket.send(data, { binary: isBinary });
    });
    socket.on("close", () => resolve(last));
  });

const main = async () => {
  const count = Number((await converse("/getCaseCount")).toString());
  let next = 1;
  const worker = async () => {
    while (next <= count) await converse(`/runCase?case=${next++}&agent=ws`, true);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  await converse("/updateReports?agent=ws");
  console.log(JSON.stringify({ count }));
};
main().catch((error) => fail(error.stack));
