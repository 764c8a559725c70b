package phoenix_test

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"ganglion/internal/memnet"
	"ganglion/phoenix"
)

// acceptKey is RFC 6455, section 4.2.2.
func acceptKey(r *http.Request) string {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func readAll(c net.Conn) { io.Copy(io.Discard, c) }

// classes says which of the classes that lead to different retries err is in.
func classes(err error) string {
	s := ""
	if errors.Is(err, phoenix.ErrTLSRefused) {
		s += "refused "
	}
	if errors.Is(err, phoenix.ErrShed) {
		s += "shed "
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		s += "untrusted "
	}
	if _, ok := errors.AsType[*phoenix.DialError](err); ok {
		s += "answered "
	}
	return s
}

var tlsFailures = map[string]struct {
	server func(net.Conn) // closes nothing: that is done for it
	client func(*tls.Config)
	want   string
}{
	"certificate refused, TLS 1.2": {refuse(tls.VersionTLS12), nil, "refused "},
	"certificate refused, TLS 1.3": {refuse(tls.VersionTLS13), nil, "refused "},
	"no certificate, TLS 1.2":      {refuse(tls.VersionTLS12), withoutCertificate, "refused "},
	"no certificate, TLS 1.3":      {refuse(tls.VersionTLS13), withoutCertificate, "refused "},
	"hung up at once":              {func(net.Conn) {}, nil, "shed "},
	"hung up on the ClientHello":   {func(c net.Conn) { readRecord(c) }, nil, "shed "},
	"hung up in a record":          {func(c net.Conn) { readRecord(c); c.Write([]byte{22, 3, 3}) }, nil, "shed "},
	"hung up after the handshake":  {func(c net.Conn) { readRecord(tls.Server(c, serverTLS())) }, nil, ""},
	"no TLS":                       {func(c net.Conn) { readRecord(c); io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, nil, ""},
	"TLS too old":                  {func(c net.Conn) { serveTLS(c, tls.VersionTLS11, "") }, func(c *tls.Config) { c.MinVersion = tls.VersionTLS10 }, "refused "},
	"unknown server":               {func(c net.Conn) { serveTLS(c, 0, "") }, func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, "untrusted "},
	"wrong name":                   {func(c net.Conn) { serveTLS(c, 0, "") }, func(c *tls.Config) { c.ServerName = "third.test" }, "untrusted "},
	"answered":                     {func(c net.Conn) { serveTLS(c, 0, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n") }, nil, "answered "},
}

// refuse does not like any client certificate, nor none.
func refuse(version uint16) func(net.Conn) {
	return func(c net.Conn) {
		config := serverTLS()
		config.MinVersion, config.MaxVersion = version, version
		config.ClientAuth = tls.RequireAnyClientCert
		config.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return errors.New("who is that?") }
		tls.Server(c, config).Handshake()
	}
}

func withoutCertificate(c *tls.Config) { c.GetClientCertificate = nil }

// serveTLS gives answer to the first request and waits for the client to go;
// with none it only shakes hands.
func serveTLS(c net.Conn, maxVersion uint16, answer string) {
	config := serverTLS()
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, maxVersion
	s := tls.Server(c, config)
	if s.Handshake() != nil || answer == "" {
		return
	}
	if _, err := http.ReadRequest(bufio.NewReader(s)); err == nil {
		io.WriteString(s, answer)
		readAll(s)
	}
}

// readRecord waits for whatever comes first.
func readRecord(c net.Conn) { c.Read(make([]byte, 4096)) }

func TestTLSFailures(t *testing.T) {
	for name, tt := range tlsFailures {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := options(serveRaw(t, tt.server))
				if tt.client != nil {
					tt.client(o.TLS)
				}
				_, err := phoenix.Dial(t.Context(), hubURL, o)
				if err == nil || classes(err) != tt.want {
					t.Errorf("%v is %q, want %q", err, classes(err), tt.want)
				}
			})
		})
	}
}

// TestTLSFailuresOverTCP is the same with a real network, where what a server
// says last and the end of the connection may overtake the client's request.
func TestTLSFailuresOverTCP(t *testing.T) {
	for name, tt := range tlsFailures {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var server sync.WaitGroup
			defer server.Wait()
			defer l.Close()
			server.Go(func() {
				c, err := l.Accept()
				if err == nil {
					tt.server(c)
					c.Close()
				}
			})
			o := phoenix.Options{TLS: clientTLS()}
			if tt.client != nil {
				tt.client(o.TLS)
			}
			_, err = phoenix.Dial(t.Context(), fmt.Sprintf("wss://%s/socket/websocket", l.Addr()), o)
			if err == nil || classes(err) != tt.want {
				t.Errorf("%v is %q, want %q", err, classes(err), tt.want)
			}
		})
	}
}

// TestShedByReset is load shedding with a reset, at once and over TCP.
func TestShedByReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *memnet.Listener
		l = serveRaw(t, func(c net.Conn) {
			readRecord(c)
			l.Drop()
		})
		if _, err := phoenix.Dial(t.Context(), hubURL, options(l)); classes(err) != "shed " {
			t.Error(err)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	defer server.Wait()
	defer l.Close()
	server.Go(func() {
		if c, err := l.Accept(); err == nil {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	})
	if _, err := phoenix.Dial(t.Context(), "wss://"+l.Addr().String()+"/", phoenix.Options{TLS: clientTLS()}); classes(err) != "shed " {
		t.Error(err)
	}
}

// TestLateAlert has the whole TLS 1.3 refusal arrive, and the connection
// end, before the request can be written.
func TestLateAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveRaw(t, refuse(tls.VersionTLS13))
		o := options(l)
		o.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := l.Dial(ctx, network, addr)
			return slow{c}, err
		}
		if _, err := phoenix.Dial(t.Context(), hubURL, o); classes(err) != "refused " {
			t.Error(err)
		}
	})
}

// A slow connection lets everybody else go first, before each Write.
type slow struct{ net.Conn }

func (c slow) Write(b []byte) (int, error) {
	synctest.Wait()
	return c.Conn.Write(b)
}
