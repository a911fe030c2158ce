//! A link over a WebSocket.
