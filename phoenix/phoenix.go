// Package phoenix is a client for Phoenix Channels, protocol version 2 with
// the JSON serializer.
//
// [Message] is the wire format, [Conn] carries messages over a websocket, and
// [Socket] is the conversation: joins, replies and heartbeats. A Socket does
// no I/O: whoever owns the Conn feeds it what arrived and sends what it
// returns.
//
// The package must not know what the topics and events mean, who is speaking,
// or when it is worth dialing again; it only says apart the failures that lead
// to different answers.
package phoenix
