// Messages of one Redis channel to everybody: by SSE on /sse, by WebSocket on /ws.

const http = require("node:http");
const { createClient } = require("@redis/client");
const { WebSocket, WebSocketServer } = require("ws");

const streams = new Set();

const server = http.createServer((request, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  response.flushHeaders();
  streams.add(response);
  response.on("close", () => streams.delete(response));
});
const deflate = { serverNoContextTakeover: true, clientNoContextTakeover: true };
const sockets = new WebSocketServer({
  server,
  path: "/ws",
  perMessageDeflate: process.env.DEFLATE ? { ...deflate, threshold: 256 } : false,
});

async function main() {
  const subscriber = createClient({ url: process.env.REDIS });
  await subscriber.connect();
  await subscriber.subscribe("bench", (message) => {
    const event = `data: ${message}\n\n`;
    for (const stream of streams) stream.write(event);
    for (const socket of sockets.clients) {
      if (socket.readyState === WebSocket.OPEN) socket.send(message);
    }
  });
  server.listen({ port: process.env.PORT, host: "127.0.0.1", backlog: 4096 });
}

main();
