package phoenix_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ganglion/phoenix"

	"github.com/gorilla/websocket"
)

var hello = phoenix.Message{JoinRef: "1", Ref: "2", Topic: "device", Event: "hello", Payload: json.RawMessage(`{"a":"<&>"}`)}

func TestEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := dial(t, options(serve(t, serverTLS(), talk(echo))))
		big := hello
		big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("0123456789", 30_000) + `"}`)
		for _, m := range []phoenix.Message{hello, big, hello} {
			if err := c.Write(m); err != nil {
				t.Fatal(err)
			}
			if got, err := c.Read(); err != nil || !reflect.DeepEqual(got, m) {
				t.Fatalf("got %.100v, %v", got, err)
			}
		}
	})
}

// TestRead checks what Read makes of what a server sends: messages first, then
// the end.
func TestRead(t *testing.T) {
	frame := string(hello.AppendJSON(nil))
	sized := func(n int) string {
		return strings.Replace(frame, "<&>", strings.Repeat("x", n-len(frame)+3), 1)
	}
	closing := func(code int, text string) func(*websocket.Conn) {
		return func(ws *websocket.Conn) {
			ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(time.Second))
			ws.ReadMessage()
		}
	}
	closed := func(code int, text string) func(error) bool {
		return func(err error) bool {
			e, ok := errors.AsType[*phoenix.CloseError](err)
			return ok && *e == phoenix.CloseError{Code: code, Text: text}
		}
	}
	is := func(want error) func(error) bool {
		return func(err error) bool {
			_, isClose := errors.AsType[*phoenix.CloseError](err)
			return errors.Is(err, want) && !isClose
		}
	}
	send := func(kind int, b string) func(*websocket.Conn) {
		return func(ws *websocket.Conn) { ws.WriteMessage(kind, []byte(b)) }
	}
	text := func(b string) func(*websocket.Conn) { return send(websocket.TextMessage, b) }
	bye := closing(1000, "")
	for name, tt := range map[string]struct {
		say  []func(*websocket.Conn)
		want []string // "ok", "malformed"
		end  func(error) bool
	}{
		"drained":           {[]func(*websocket.Conn){closing(1012, "")}, nil, closed(1012, "")},
		"evicted, in words": {[]func(*websocket.Conn){text(frame), closing(1001, "newer")}, []string{"ok"}, closed(1001, "newer")},
		"close without code": {[]func(*websocket.Conn){func(ws *websocket.Conn) {
			ws.WriteControl(websocket.CloseMessage, nil, time.Now().Add(time.Second))
		}}, nil, closed(1005, "")},
		"hung up":          {[]func(*websocket.Conn){text(frame)}, []string{"ok"}, is(io.ErrUnexpectedEOF)},
		"hung up midway":   {[]func(*websocket.Conn){func(ws *websocket.Conn) { ws.NetConn().Write([]byte{0x81, 100, 'x'}) }}, nil, is(io.ErrUnexpectedEOF)},
		"binary skipped":   {[]func(*websocket.Conn){send(websocket.BinaryMessage, "\x00"), text(frame), send(websocket.BinaryMessage, frame), text(frame), bye}, []string{"ok", "ok"}, closed(1000, "")},
		"malformed":        {[]func(*websocket.Conn){text("not json"), text(frame), text("[]"), text("[\"\xff\"]"), bye}, []string{"malformed", "ok", "malformed", "malformed"}, closed(1000, "")},
		"largest":          {[]func(*websocket.Conn){text(sized(1 << 20)), bye}, []string{"ok"}, closed(1000, "")},
		"too large":        {[]func(*websocket.Conn){text(sized(1<<20 + 1)), bye}, nil, is(websocket.ErrReadLimit)},
		"binary too large": {[]func(*websocket.Conn){send(websocket.BinaryMessage, sized(1<<20+1)), text(frame)}, nil, is(websocket.ErrReadLimit)},
		"too large in pieces": {[]func(*websocket.Conn){func(ws *websocket.Conn) {
			w, _ := ws.NextWriter(websocket.TextMessage)
			for range 1<<10 + 1 {
				io.WriteString(w, strings.Repeat("x", 1<<10))
			}
			w.Close()
		}}, nil, is(websocket.ErrReadLimit)},
		"compressed unasked": {[]func(*websocket.Conn){func(ws *websocket.Conn) { ws.NetConn().Write([]byte{0xc1, 1, 'x'}) }}, nil,
			func(err error) bool { return strings.Contains(err.Error(), "RSV1") }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := dial(t, options(serve(t, serverTLS(), talk(func(ws *websocket.Conn) {
					for _, say := range tt.say {
						say(ws)
					}
				}))))
				for i, want := range tt.want {
					m, err := c.Read()
					if want == "ok" && (err != nil || m.Event != "hello") || want != "ok" && !errors.Is(err, phoenix.ErrMalformed) {
						t.Fatalf("message %d: got %.100v, %v, want %s", i, m, err, want)
					}
				}
				_, err := c.Read()
				if err == nil || !tt.end(err) {
					t.Fatalf("the end is %v", err)
				}
				for range 2000 { // the library panics at the thousandth
					if _, again := c.Read(); again != err {
						t.Fatalf("then %v", again)
					}
				}
			})
		})
	}
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serve(t, serverTLS(), talk(echo))
		c := dial(t, options(l))
		time.AfterFunc(time.Second, l.Drop)
		if _, err := c.Read(); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if err := c.Write(hello); err == nil {
			t.Fatal("written to nobody")
		}
	})
}

// TestLastWords has a server that says why it closes and is gone before the
// next message to it.
func TestLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := dial(t, options(serve(t, serverTLS(), talk(func(ws *websocket.Conn) {
			ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1001, ""), time.Now().Add(time.Second))
		}))))
		synctest.Wait()
		if err := c.Write(hello); err == nil {
			t.Fatal("written to nobody")
		}
		if _, err := c.Read(); err == nil || err.Error() != "phoenix: read: closed by the server: 1001" {
			t.Errorf("got %v", err)
		}
	})
}

// TestReadTimeout has a server that says hello and then nothing but pings, or
// pongs, every 20 s, until it vanishes.
func TestReadTimeout(t *testing.T) {
	for _, kind := range []int{websocket.PingMessage, websocket.PongMessage} {
		synctest.Test(t, func(t *testing.T) {
			pongs := make(chan string, 10)
			l := serve(t, serverTLS(), talk(func(ws *websocket.Conn) {
				ws.SetPongHandler(func(s string) error { pongs <- s; return nil })
				ws.WriteMessage(websocket.TextMessage, hello.AppendJSON(nil))
				gone := make(chan struct{})
				var beat sync.WaitGroup
				beat.Go(func() {
					for {
						select {
						case <-time.After(20 * time.Second):
							ws.WriteControl(kind, []byte("there?"), time.Now().Add(time.Second))
						case <-gone:
							return
						}
					}
				})
				ws.ReadMessage()
				close(gone)
				beat.Wait()
			}))
			o := options(l)
			o.ReadTimeout = 30 * time.Second
			start := time.Now()
			c := dial(t, o)
			if _, err := c.Read(); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(130*time.Second, l.Blackhole) // after the sixth
			if _, err := c.Read(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 150*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if want := map[int]int{websocket.PingMessage: 6}[kind]; len(pongs) != want {
				t.Errorf("%d pongs, want %d", len(pongs), want)
			}
		})
	}
}

// TestWriteToSilence has a server that reads nothing.
func TestWriteToSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		c := dial(t, options(serve(t, serverTLS(), talk(func(*websocket.Conn) { <-over }))))
		var reading sync.WaitGroup
		var readErr error
		reading.Go(func() { _, readErr = c.Read() })
		big := hello
		big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", 200_000) + `"}`)
		if err := c.Write(big); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := c.Write(big); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		reading.Wait()
		if !errors.Is(readErr, net.ErrClosed) || time.Since(start) != 10*time.Second {
			t.Errorf("Read: %v after %v", readErr, time.Since(start))
		}
		if err := c.Write(hello); err == nil {
			t.Error("written after a failed write")
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := make(chan error, 1)
		c := dial(t, options(serve(t, serverTLS(), talk(func(ws *websocket.Conn) {
			_, _, err := ws.ReadMessage()
			heard <- err
		}))))
		start := time.Now()
		var reading sync.WaitGroup
		reading.Go(func() {
			if _, err := c.Read(); err == nil {
				t.Error("read something")
			}
		})
		for range 3 {
			reading.Go(func() { c.Close() })
		}
		c.Close()
		reading.Wait()
		if err := <-heard; !websocket.IsCloseError(err, 1000) {
			t.Errorf("the server heard %v", err)
		}
		if time.Since(start) != 0 {
			t.Errorf("closed after %v", time.Since(start))
		}
	})
}

// TestCloseWhileStuck closes a connection whose Write waits for a server that
// has vanished: a second is all that takes.
func TestCloseWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serve(t, serverTLS(), talk(echo))
		c := dial(t, options(l))
		l.Blackhole()
		var busy sync.WaitGroup
		start := time.Now()
		busy.Go(func() {
			big := hello
			big.Payload = json.RawMessage(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`)
			if err := c.Write(big); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write: %v", err)
			}
		})
		busy.Go(func() {
			if _, err := c.Read(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v", err)
			}
		})
		synctest.Wait()
		busy.Go(func() { c.Close() })
		synctest.Wait()
		c.Close()
		if time.Since(start) != 0 {
			t.Errorf("the second Close took %v", time.Since(start))
		}
		busy.Wait()
		if time.Since(start) != time.Second {
			t.Errorf("closed after %v", time.Since(start))
		}
	})
}

// TestCloseWhenFull closes a connection that takes not one byte more.
func TestCloseWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serve(t, serverTLS(), talk(echo))
		o := options(l)
		var raw net.Conn
		o.NetDial = func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			raw, err = l.Dial(ctx, network, addr)
			return raw, err
		}
		c := dial(t, o)
		l.Blackhole()
		raw.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := raw.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		start := time.Now()
		c.Close()
		if time.Since(start) != time.Second {
			t.Errorf("closed after %v", time.Since(start))
		}
	})
}
