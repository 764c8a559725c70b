package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"ganglion/internal/hubtest"
)

// TestReady: one line says that every listener is open, whatever else is
// logged, and both signals end the gateway with 0.
func TestReady(t *testing.T) {
	for _, c := range []struct {
		level, format string
		signal        syscall.Signal
	}{
		{"debug", "text", syscall.SIGINT},
		{"info", "text", syscall.SIGTERM},
		{"warn", "text", syscall.SIGINT},
		{"error", "text", syscall.SIGTERM},
		{"info", "json", syscall.SIGTERM},
		{"warn", "json", syscall.SIGTERM},
		{"error", "json", syscall.SIGINT},
	} {
		t.Run(c.level+" "+c.format, func(t *testing.T) {
			s := newSite(t)
			child := start(t, []string{"GANGLION_LOG_LEVEL=" + c.level, "GANGLION_LOG_FORMAT=" + c.format}, "run", "--config", s.config())
			g := running{child: child}
			line := g.until("ready")
			g.mqtt, g.web = readyAddresses(t, line, c.format)
			if status, body := g.get("/readyz"); status != 200 {
				t.Errorf("readyz: %d %s", status, body)
			}
			conn, err := net.Dial("tcp", g.mqtt)
			if err != nil {
				t.Errorf("the broker: %v", err)
			} else {
				conn.Close()
			}
			g.signal(c.signal)
			if code := g.exit(patience); code != 0 {
				t.Errorf("%v ended it with %d", c.signal, code)
			}
			ready := 0
			for _, line := range g.log.lines() {
				if c.format == "json" && !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
				if strings.Contains(line, "ready") {
					ready++
				}
			}
			if ready != 1 {
				t.Errorf("%d ready lines:\n%s", ready, g.log)
			}
			if quiet := c.level == "warn" || c.level == "error"; quiet && c.format == "text" && !strings.HasPrefix(line, "ready ") {
				t.Errorf("at %s the line is %q", c.level, line)
			}
		})
	}
}

// readyAddresses reads the line of either format.
func readyAddresses(t *testing.T, line, format string) (mqtt, web string) {
	t.Helper()
	if format == "json" {
		var v struct{ Level, Msg, MQTT, Web, Time string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Msg != "ready" || v.Level != "INFO" || v.Time == "" {
			t.Fatalf("ready line %s: %v", line, err)
		}
		return v.MQTT, v.Web
	}
	m := readyAddrs.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("ready line %s", line)
	}
	return m[1], m[2]
}

// A wiretap is a listener that keeps what clients send.
type wiretap struct {
	net.Listener
	mu   sync.Mutex // guards sent
	sent bytes.Buffer
}

// Accept implements [net.Listener].
func (w *wiretap) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wiretapped{c, w}, nil
}

type wiretapped struct {
	net.Conn
	tap *wiretap
}

// Read implements [net.Conn].
func (c wiretapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.sent.Write(b[:n])
	return n, err
}

// TestGoodbye: the last frame of a gateway that is told to end is a close frame
// with 1000, which NervesHub books as a device that has left. Read from the wire
// of a plain connection with a shared secret.
func TestGoodbye(t *testing.T) {
	const id, key, secret = "probe-1", "nhp_0000000000000000000000000000000000000000000", "U2VjcmV0IG9mIGEgcHJvZHVjdCB0aGF0IGlzIGEgdGVz"
	s := emptySite(t)
	tap := &wiretap{Listener: s.gate.Listener}
	s.gate.Listener = tap
	s.serve(tls.Certificate{})
	s.registry.AddSecret(key, secret, "")
	s.write("product.secret", secret+"\n")
	config := s.write("ganglion.yaml", `id: site-7
state_dir: state
hub:
  url: ws://`+tap.Addr().String()+`/device-socket/websocket
identity:
  shared_secret:
    key: `+key+`
    secret_file: product.secret
mqtt:
  embedded:
    listen: 127.0.0.1:0
web:
  listen: 127.0.0.1:0
`)
	g := s.await(start(t, nil, "run", "--config", config))
	s.switchOn(s.device(g, id).Run)
	s.until(id, "a join", patience, isJoined)
	g.signal(syscall.SIGTERM)
	if code := g.exit(patience); code != 0 {
		t.Errorf("ended with %d", code)
	}
	s.until(id, "the goodbye", patience, func(d hubtest.DeviceState) bool { return !d.Socket })
	tap.mu.Lock()
	defer tap.mu.Unlock()
	if code := lastClose(tap.sent.Bytes()); code != 1000 {
		t.Errorf("the last frame is not a close frame with 1000 but %d: %x", code, tap.sent.Bytes()[max(0, tap.sent.Len()-20):])
	}
}

// lastClose is the code of the close frame that b ends with, 0 if there is none:
// FIN and opcode 8, a masked length of two, the mask, the code (RFC 6455 §5.2).
func lastClose(b []byte) uint16 {
	const size = 2 + 4 + 2
	if len(b) < size {
		return 0
	}
	f := b[len(b)-size:]
	if f[0] != 0x88 || f[1] != 0x80|2 {
		return 0
	}
	return binary.BigEndian.Uint16([]byte{f[6] ^ f[2], f[7] ^ f[3]})
}
