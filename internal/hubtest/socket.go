package hubtest

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

const (
	readLimit    = 8_000_000        // bytes of one assembled message
	writeTimeout = 10 * time.Second // of one frame
	closeTimeout = time.Second      // for the peer's answer to a close frame
)

// A socket is one websocket: a device's, or an operator's (dev is nil).
type socket struct {
	hub  *Hub
	born int // orders the hub's sockets by age
	ws   *websocket.Conn
	out  *outbox
	fin  chan struct{} // closed when read has ended
	off  chan struct{} // closed by cut
	one  sync.Once     // of cut

	// Hub.mu guards everything below.
	dev      *device
	allowed  map[string]bool     // extensions, decided when the socket was authenticated
	channels map[string]*channel // by internal topic
	closing  bool                // a close frame is on its way; nothing is answered any more
	vanished bool                // neither reads nor writes nor closes
}

// accept registers a socket of a device that has been authenticated.
func (h *Hub) accept(ws *websocket.Conn, id string) *socket {
	h.mu.Lock()
	defer h.unlock()
	d := h.device(id)
	s := h.newSocket(ws)
	s.dev, s.allowed = d, map[string]bool{}
	for key, on := range h.extensions {
		s.allowed[key] = on
	}
	s.out.setDelay(d.delay)
	if old := d.socket; old != nil { // came in between evict and here
		h.evictSocket(old)
	}
	d.socket = s
	d.connections++
	d.connect(time.Now())
	h.say(id, "connected")
	return s
}

func (h *Hub) newSocket(ws *websocket.Conn) *socket {
	h.born++
	s := &socket{hub: h, born: h.born, ws: ws, out: newOutbox(), fin: make(chan struct{}), off: make(chan struct{}), channels: map[string]*channel{}}
	h.sockets[s] = struct{}{}
	if h.closed {
		h.cuts = append(h.cuts, s)
	}
	return s
}

// evict closes the connection of a device that connects anew.
func (h *Hub) evict(id string) {
	h.mu.Lock()
	defer h.unlock()
	if d := h.devices[id]; d != nil && d.socket != nil {
		h.evictSocket(d.socket)
	}
}

func (h *Hub) evictSocket(s *socket) {
	s.dev.evictions++
	h.say(s.dev.id, "evicted by a newer connection")
	s.close(websocket.CloseGoingAway)
}

// serve runs until the connection is over; its owner is the HTTP server's
// goroutine, which Close waits for.
func (s *socket) serve() {
	var writer sync.WaitGroup
	writer.Go(s.write)
	code := s.read()
	close(s.fin)
	if s.gone() {
		<-s.off
	}
	s.hub.mu.Lock()
	s.hub.leave(s)
	s.hub.unlock()
	s.out.finish(code)
	writer.Wait()
	s.ws.Close()
	s.hub.mu.Lock()
	delete(s.hub.sockets, s)
	s.hub.unlock()
}

// read handles frames until the connection ends and returns the code of the
// close frame to send, 0 for none.
func (s *socket) read() int {
	s.ws.SetReadLimit(readLimit)
	alive := func() { s.ws.SetReadDeadline(time.Now().Add(s.hub.cfg.Idle)) }
	s.ws.SetPingHandler(func(data string) error {
		alive()
		s.out.add(outgoing{kind: websocket.PongMessage, data: []byte(data)})
		return nil
	})
	s.ws.SetPongHandler(func(string) error { alive(); return nil })
	s.ws.SetCloseHandler(func(int, string) error { return nil }) // answered by serve
	alive()
	for {
		kind, data, err := s.ws.ReadMessage()
		if err != nil {
			return closeCode(err)
		}
		alive()
		if s.gone() {
			return 0
		}
		s.receive(kind, data)
	}
}

// gone says that the socket has vanished.
func (s *socket) gone() bool {
	s.hub.mu.Lock()
	defer s.hub.unlock()
	return s.vanished
}

// closeCode is what the server answers to the end of reading.
func closeCode(err error) int {
	if ended, ok := errors.AsType[*websocket.CloseError](err); ok {
		switch ended.Code {
		case websocket.CloseAbnormalClosure: // no close frame came at all
			return 0
		case websocket.CloseNoStatusReceived:
			return websocket.CloseNormalClosure
		}
		return ended.Code
	}
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		return websocket.CloseProtocolError // idle
	}
	return 0 // or gorilla has sent one: 1002, or 1009 beyond readLimit
}

// receive handles one message.
func (s *socket) receive(kind int, data []byte) {
	h := s.hub
	h.mu.Lock()
	defer h.unlock()
	if s.vanished || s.closing {
		return
	}
	now := time.Now()
	if s.dev != nil {
		s.dev.seen(now)
	}
	var f Frame
	var err error
	switch {
	case kind == websocket.BinaryMessage:
		f, err = parseBinaryFrame(data)
	case !utf8.Valid(data):
		s.close(websocket.CloseInvalidFramePayloadData)
		return
	default:
		f, err = parseFrame(data)
	}
	if err != nil {
		if s.dev != nil {
			h.say(s.dev.id, fmt.Sprintf("connection crashed: %v", err))
		}
		s.close(websocket.CloseInternalServerErr)
		return
	}
	f.Time = now
	s.record(f)
	s.dispatch(now, f)
}

// send puts a frame on the wire, after those that are waiting.
func (s *socket) send(f Frame) {
	if s.closing || s.vanished {
		return
	}
	f.Time, f.Dir = time.Now(), "down"
	if !s.out.add(outgoing{kind: websocket.TextMessage, data: f.encode()}) {
		s.hub.cuts = append(s.hub.cuts, s) // hopelessly behind
		return
	}
	s.record(f)
}

func (s *socket) reply(joinRef, ref json.RawMessage, topic, status string, response any) {
	s.send(Frame{
		JoinRef: joinRef, Ref: ref, Topic: topic, Event: "phx_reply",
		Payload: marshal(map[string]any{"status": status, "response": response}),
	})
}

func (s *socket) record(f Frame) {
	if s.dev != nil {
		s.dev.frames = appendBounded(s.dev.frames, f, frameLimit)
		s.hub.touched[s.dev.id] = struct{}{}
	}
}

// close starts the end of the connection from this side; it is called with
// Hub.mu held. A vanished socket just goes.
func (s *socket) close(code int) {
	if s.closing {
		return
	}
	s.hub.leave(s)
	if s.vanished {
		s.hub.cuts = append(s.hub.cuts, s)
		return
	}
	s.closing = true
	if !s.out.add(outgoing{kind: websocket.CloseMessage, code: code}) {
		s.hub.cuts = append(s.hub.cuts, s)
	}
}

// cut ends the TCP connection without a close frame.
func (s *socket) cut() {
	s.one.Do(func() {
		close(s.off)
		s.out.drop()
		c := s.ws.NetConn()
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // without the close_notify, which may block
		}
		c.Close()
	})
}

// leave forgets the channels of a socket and its place as the device's.
func (h *Hub) leave(s *socket) {
	for key := range s.channels {
		h.unsubscribe(s, key)
	}
	clear(s.channels)
	if d := s.dev; d != nil && d.socket == s {
		d.socket = nil
		d.disconnect()
		h.say(d.id, "disconnected")
	}
}
