// Two servers of the official implementation, to prove `client.py` against; the second recovers connections.
// Prints their ports, and ends with its input.
"use strict";

const { createServer } = require("http");
const { Server } = require("socket.io");

function serve(socket) {
  socket.emit("welcome", { auth: socket.handshake.auth, query: socket.handshake.query.color || null });
  socket.on("echo", (...args) => {
    if (typeof args[args.length - 1] === "function") {
      args.pop()(...args);
    } else {
      socket.emit("echo", ...args);
    }
  });
  socket.on("ask me", () =>
    socket.emit("ask", "how many?", (...answer) => socket.emit("answered", ...answer)));
  socket.on("kick me", () => socket.disconnect());
  socket.on("header", (name, acknowledge) => acknowledge(socket.handshake.headers[name]));
  socket.on("count", (numbers) => numbers.forEach((number) => socket.emit("number", number)));
}

function listen(options) {
  const httpServer = createServer();
  const io = new Server(httpServer, { allowEIO3: true, ...options });
  io.on("connection", serve);
  io.of("/members").use((socket, next) => {
    if (socket.handshake.auth.token === "right") return next();
    const error = new Error("not a member");
    error.data = { code: 403 };
    next(error);
  });
  io.of("/members").on("connection", serve);
  return new Promise((resolve) => {
    httpServer.listen(0, "127.0.0.1", () => resolve(httpServer.address().port));
  });
}

// One that recovers adds to the arguments of each event its offset.
Promise.all([listen({}), listen({ connectionStateRecovery: {} })])
  .then((ports) => console.log(ports.join(" ")));
process.stdin.resume().on("end", () => process.exit(0));
