// The official Socket.IO clients for `client.py`: a command on each line of standard input, what happens on
// each line of standard output, both in JSON. A Buffer is {"$bytes": its base64}.
"use strict";

const readline = require("readline");

const LIBRARIES = { 2: "socket.io-client-2", 4: "socket.io-client" };

const sockets = new Map();
const swarms = new Map();

function tell(message) {
  process.stdout.write(JSON.stringify(message) + "\n");
}

function toJSON(value) {
  if (value instanceof ArrayBuffer) return { $bytes: Buffer.from(value).toString("base64") };
  if (ArrayBuffer.isView(value)) {
    return { $bytes: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") };
  }
  if (Array.isArray(value)) return value.map(toJSON);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, toJSON(item)]));
  }
  return value === undefined ? null : value;
}

function fromJSON(value) {
  if (Array.isArray(value)) return value.map(fromJSON);
  if (value !== null && typeof value === "object") {
    if (typeof value.$bytes === "string") return Buffer.from(value.$bytes, "base64");
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, fromJSON(item)]));
  }
  return value;
}

function open({ url, version, options }) {
  return require(LIBRARIES[version])(url, fromJSON(options));
}

// Version 2 has no onAny().
function onAny(socket, listener) {
  if (socket.onAny) {
    socket.onAny(listener);
    return;
  }
  const onevent = socket.onevent;
  socket.onevent = function (packet) {
    const args = [...packet.data];
    if (packet.id != null) args.push(this.ack(packet.id));
    listener(...args);
    onevent.call(this, { ...packet, id: undefined });
  };
}

function onConnectError(socket, listener) {
  socket.on("connect_error", (error) => listener(error.message, error.data));
  // How version 2 says that a namespace refused: with the server's text, or its data instead.
  if (!socket.onAny) {
    socket.on("error", (error) => {
      if (typeof error === "string") listener(error, null);
      else listener(error.message || "", error.data || error);
    });
  }
}

function transportOf(socket) {
  const engine = socket.io.engine;
  return engine && engine.transport ? engine.transport.name : null;
}

function connect(command) {
  const socket = open(command);
  const report = (type, fields) => tell({ socket: command.socket, type, ...fields });
  sockets.set(command.socket, socket);

  let engine = null;
  const watchEngine = () => {
    if (engine === socket.io.engine) return;
    engine = socket.io.engine;
    report("transport", { name: transportOf(socket) });
    engine.on("upgrade", (transport) => report("transport", { name: transport.name }));
  };
  socket.io.on("open", watchEngine);
  socket.on("connect", () => {
    watchEngine(); // of a manager that was open before
    report("connect", { id: socket.id, recovered: socket.recovered === true });
  });
  socket.on("disconnect", (reason) => report("disconnect", { reason }));
  onConnectError(socket, (message, data) => report("connect_error", { message, data: toJSON(data) }));
  onAny(socket, (name, ...args) => {
    if (typeof args[args.length - 1] === "function") {
      const acknowledge = args.pop();
      if (name in command.answers) acknowledge(...fromJSON(command.answers[name]));
    }
    report("event", { name, args: toJSON(args) });
  });
}

// End the transport as a network would: a WebSocket without a close frame. A poll can only be ended by the
// engine's close(), which tells the server.
function drop(socket) {
  const engine = socket.io.engine;
  if (engine.transport.ws && engine.transport.ws.terminate) {
    engine.transport.ws.terminate();
  } else {
    engine.close();
  }
}

class Swarm {
  constructor(command) {
    this.id = command.swarm;
    this.seen = []; // of each socket, by event: the first arguments
    this.waits = [];
    this.sockets = [];
    this.counts = { connected: 0, connects: 0, disconnects: {}, errors: {} };
    this.command = command;
    for (let n = 0; n < Math.min(command.inflight, command.count); n++) this.openNext();
  }

  openNext() {
    if (this.sockets.length === this.command.count) return;
    const seen = new Map();
    const socket = open(this.command);
    this.seen.push(seen);
    this.sockets.push(socket);
    let answered = false;
    const goOn = () => {
      if (!answered) this.openNext();
      answered = true;
    };
    socket.on("connect", () => {
      goOn();
      this.counts.connected++;
      this.counts.connects++;
      this.tellCounts();
    });
    socket.on("disconnect", (reason) => {
      this.counts.connected--;
      this.counts.disconnects[reason] = (this.counts.disconnects[reason] || 0) + 1;
      this.tellCounts();
    });
    onConnectError(socket, (message) => {
      goOn();
      this.counts.errors[message] = (this.counts.errors[message] || 0) + 1;
      this.tellCounts();
    });
    onAny(socket, (name, first) => {
      if (!seen.has(name)) seen.set(name, []);
      const values = seen.get(name);
      values.push(first);
      for (const wait of this.waits) {
        if (wait.event === name && wait.count === values.length) wait.missing--;
      }
      this.tellReached();
    });
  }

  tellCounts() {
    tell({ swarm: this.id, type: "counts", counts: this.counts });
  }

  valuesOf(seen, event) {
    return seen.get(event) || [];
  }

  wait({ request, event, count }) {
    const had = this.seen.filter((seen) => this.valuesOf(seen, event).length >= count).length;
    this.waits.push({ request, event, count, missing: this.command.count - had });
    this.tellReached();
  }

  tellReached() {
    if (!this.waits.some((wait) => wait.missing === 0)) return;
    for (const { request, missing } of this.waits) {
      if (missing === 0) tell({ swarm: this.id, type: "answer", request, value: null });
    }
    this.waits = this.waits.filter((wait) => wait.missing > 0);
  }

  problems({ request, event, expected }) {
    const value = [];
    this.seen.forEach((seen, number) => {
      const had = this.valuesOf(seen, event);
      const problem = difference(had, expected);
      if (problem) value.push(`socket ${number}: ${problem}`);
    });
    tell({ swarm: this.id, type: "answer", request, value });
  }
}

// What is wrong with what a socket has had, or null.
function difference(had, expected) {
  const wanted = new Set(expected);
  const seen = new Set(had);
  const lost = expected.filter((value) => !seen.has(value));
  const foreign = [...seen].filter((value) => !wanted.has(value));
  const doubled = had.length - seen.size;
  if (lost.length || foreign.length || doubled) {
    const [few, fewForeign] = [lost.slice(0, 3), foreign.slice(0, 3)];
    return `lost ${lost.length} ${JSON.stringify(few)}, doubled ${doubled}, ` +
      `foreign ${foreign.length} ${JSON.stringify(fewForeign)}`;
  }
  const index = expected.findIndex((value, place) => value !== had[place]);
  return index < 0 ? null : `out of order from ${JSON.stringify(had[index])} on`;
}

const COMMANDS = {
  connect,
  emit: ({ socket, args }) => sockets.get(socket).emit(...fromJSON(args)),
  call: ({ socket, call, args }) =>
    sockets.get(socket).emit(...fromJSON(args), (...answer) =>
      tell({ socket, type: "ack", call, args: toJSON(answer) })),
  drop: ({ socket }) => drop(sockets.get(socket)),
  disconnect: ({ socket }) => sockets.get(socket).disconnect(),
  reconnect: ({ socket }) => sockets.get(socket).connect(),
  swarm: (command) => swarms.set(command.swarm, new Swarm(command)),
  "swarm.wait": (command) => swarms.get(command.swarm).wait(command),
  "swarm.problems": (command) => swarms.get(command.swarm).problems(command),
  "swarm.emit": ({ swarm, args }) =>
    swarms.get(swarm).sockets.forEach((socket) => socket.emit(...fromJSON(args))),
  "swarm.drop": ({ swarm }) => swarms.get(swarm).sockets.forEach(drop),
  "swarm.disconnect": ({ swarm }) => swarms.get(swarm).sockets.forEach((socket) => socket.disconnect()),
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const command = JSON.parse(line);
  COMMANDS[command.command](command);
});
lines.on("close", () => process.exit(0));
