package phoenix

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// closeTimeout bounds [Conn.Close].
const closeTimeout = time.Second

// keptFrame is the largest buffer kept for the next message to be written.
const keptFrame = 64 << 10

// frames holds the buffers messages are encoded in.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// A CloseError is the server's close frame.
type CloseError struct {
	Code int // RFC 6455, section 7.4; 1005 if the frame has none
	Text string
}

func (e *CloseError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("closed by the server: %d", e.Code)
	}
	return fmt.Sprintf("closed by the server: %d %q", e.Code, e.Text)
}

// A Conn carries Messages over one websocket. One goroutine may call Read and
// one other Write; Close may be called from any.
type Conn struct {
	ws           *websocket.Conn
	raw          *rawConn // below ws and TLS
	readTimeout  time.Duration
	writeTimeout time.Duration
	closing      atomic.Bool

	ended error // why nothing more can be read. Owned by the caller of Read.
}

func newConn(ws *websocket.Conn, raw *rawConn, o Options) *Conn {
	c := &Conn{ws: ws, raw: raw, readTimeout: o.ReadTimeout, writeTimeout: o.WriteTimeout}
	ws.SetReadLimit(o.ReadLimit)
	answer := ws.PingHandler()
	ws.SetPingHandler(func(data string) error {
		c.heard()
		return answer(data)
	})
	ws.SetPongHandler(func(string) error {
		c.heard()
		return nil
	})
	return c
}

// Read returns the next Message. Binary frames are skipped, as the serializer
// asked for has none. A frame that is not a Message is an error wrapping
// [ErrMalformed], after which reading may go on; any other error is the end,
// and returned again by every further Read: a *[CloseError] after the server's
// close frame, [os.ErrDeadlineExceeded] wrapped after a ReadTimeout.
func (c *Conn) Read() (Message, error) {
	for c.ended == nil {
		kind, frame, err := c.readFrame()
		switch {
		case err != nil:
			c.ended = fmt.Errorf("phoenix: read: %w", c.explain(err))
		case kind == websocket.TextMessage:
			return Parse(frame)
		}
	}
	return Message{}, c.ended
}

func (c *Conn) readFrame() (kind int, frame []byte, err error) {
	c.heard()
	kind, r, err := c.ws.NextReader()
	if err != nil || kind != websocket.TextMessage {
		return kind, nil, err
	}
	c.heard()
	frame, err = io.ReadAll(r)
	return kind, frame, err
}

// heard renews the read deadline.
func (c *Conn) heard() {
	if c.readTimeout > 0 {
		c.ws.SetReadDeadline(time.Now().Add(c.readTimeout))
	}
}

// explain says in our words why nothing more can be read.
func (c *Conn) explain(err error) error {
	if bye, ok := errors.AsType[*websocket.CloseError](err); ok {
		if bye.Code == websocket.CloseAbnormalClosure { // the library's name for no close frame
			return io.ErrUnexpectedEOF
		}
		return &CloseError{Code: bye.Code, Text: bye.Text}
	}
	if isTimeout(err) {
		return fmt.Errorf("nothing heard for %v: %w", c.readTimeout, os.ErrDeadlineExceeded)
	}
	return err
}

// isTimeout recognizes a deadline that has passed, whose own error the library
// may hide.
func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// Write sends m within the WriteTimeout; if that has passed, the error wraps
// [os.ErrDeadlineExceeded]. After any error the connection is broken, and Read
// ends too, with what the server said last if it said something.
func (c *Conn) Write(m Message) error {
	b := frames.Get().(*[]byte)
	*b = m.AppendJSON((*b)[:0])
	c.ws.SetWriteDeadline(time.Now().Add(c.writeTimeout))
	err := c.ws.WriteMessage(websocket.TextMessage, *b)
	if cap(*b) <= keptFrame {
		frames.Put(b)
	}
	if err == nil {
		return nil
	}
	if isTimeout(err) {
		err = fmt.Errorf("not taken within %v: %w", c.writeTimeout, os.ErrDeadlineExceeded)
		c.raw.Close() // part of the frame may be out, and Read would never know
	}
	return fmt.Errorf("phoenix: write: %w", err)
}

// Close sends a close frame, 1000, if that is possible within a second, and
// ends the connection without waiting for the answer. A blocked Read or Write
// returns. Further calls do nothing and return at once.
func (c *Conn) Close() error {
	if c.closing.Swap(true) {
		return nil
	}
	end := time.AfterFunc(closeTimeout, func() { c.raw.Close() })
	defer end.Stop()
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	// The error does not matter: a broken connection needs no goodbye.
	_ = c.ws.WriteControl(websocket.CloseMessage, bye, time.Now().Add(closeTimeout))
	_ = c.ws.Close()
	return nil
}
