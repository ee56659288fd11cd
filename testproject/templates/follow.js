// Follow a view of realtime.websocket(..., envelope="json") from the cursor `since` on. When the
// connection ends, open another that goes on where it stopped. Returns a function that sends.
function follow(url, since, { message, reset, state }) {
  const address = new URL(url, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  let socket;
  let attempts = 0;

  function open() {
    address.searchParams.set("since", since);
    socket = new WebSocket(address);
    socket.onopen = () => {
      attempts = 0;
      state("open", attempts);
    };
    socket.onmessage = ({ data }) => {
      const received = JSON.parse(data);
      since = received.id ?? since;
      if (received.channel !== null || received.event === "message") message(received);
      else if (received.event === "reset") reset(received.data);
    };
    socket.onclose = () => {
      // All clients lose a server at once, and should not come back at once.
      const seconds = Math.min(2 ** attempts++, 30) * (0.5 + Math.random() / 2);
      setTimeout(open, seconds * 1000);
      state("connecting", attempts);
    };
  }

  open();
  return (data) => socket.send(data);
}
