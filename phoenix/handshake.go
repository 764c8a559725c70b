package phoenix

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

// handshakeLimit is how many bytes the server may send, TLS included, before
// the connection is a websocket. Without it response headers have no end.
const handshakeLimit = 256 << 10

// writeBuffers is shared by all connections: almost all of them are idle, and
// an idle one then holds no write buffer.
var writeBuffers sync.Pool

// A handshake is one attempt to open a websocket. Owned by dialOnce.
type handshake struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	conn    *rawConn    // nil until there is one
	stop    func() bool // ends the watch over ctx
	through bool        // conn reaches the server, by way of the proxy if there is one
	tlsErr  error       // how the TLS handshake failed
}

func dialOnce(ctx context.Context, u *url.URL, o Options) (*Conn, error) {
	h := handshake{dial: o.NetDial, stop: func() bool { return true }}
	ws, resp, err := h.upgrade(ctx, u, o)
	if !h.stop() && err == nil {
		err = ctx.Err()
	}
	switch {
	case err == nil && len(resp.Header.Values("Sec-Websocket-Extensions")) > 0:
		// RFC 6455, section 4.1. Compressed messages would escape ReadLimit.
		err = errors.New("the server turned on an extension that was not offered")
	case err == nil:
		h.conn.open = true
		return newConn(ws, h.conn, o), nil
	}
	if h.conn != nil {
		h.conn.Close()
	}
	if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, &DialError{Status: resp.StatusCode, Header: resp.Header, Err: err}
	}
	return nil, fmt.Errorf("phoenix: dial: %w", h.explain(ctx, err))
}

func (h *handshake) upgrade(ctx context.Context, u *url.URL, o Options) (ws *websocket.Conn, resp *http.Response, err error) {
	d := websocket.Dialer{
		NetDialContext:  h.netDial,
		Proxy:           plainProxy(http.ProxyFromEnvironment),
		TLSClientConfig: tlsConfig(o.TLS),
		ReadBufferSize:  1024,
		WriteBufferSize: 4096,
		WriteBufferPool: &writeBuffers,
	}
	header := o.Header.Clone()
	if o.UserAgent != "" {
		if header == nil {
			header = http.Header{}
		}
		header.Set("User-Agent", o.UserAgent)
	}
	defer func() {
		if h.conn == nil || h.through {
			return
		}
		// CONNECT panics in gorilla/websocket 1.5.3 over a status line that
		// has no reason phrase.
		if r := recover(); r != nil {
			err = fmt.Errorf("the proxy's answer makes no sense: %v", r)
		}
	}()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { h.through = true },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			h.tlsErr, h.conn.secured = err, err == nil
		},
	})
	return d.DialContext(ctx, withVersion(u).String(), header)
}

// netDial connects and watches ctx from then on: the library itself looks at
// nothing but its deadline.
func (h *handshake) netDial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := h.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	h.conn = &rawConn{Conn: c, room: handshakeLimit}
	h.stop = context.AfterFunc(ctx, func() { c.Close() })
	return h.conn, nil
}

// explain gives err the class that the next step depends on.
func (h *handshake) explain(ctx context.Context, err error) error {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		<-ctx.Done() // the connection has the same deadline, and may notice it first
	}
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isOp && op.Op == "remote error": // an alert, in crypto/tls's words
		return fmt.Errorf("%w: %w", ErrTLSRefused, err)
	case h.conn == nil && errors.Is(err, syscall.ECONNRESET):
		// Accepted and reset before connect(2) was done: shedding, too.
		return fmt.Errorf("%w: %w", ErrShed, err)
	case h.tlsErr == nil:
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: %w", ErrShed, err)
	}
	return err
}

// A rawConn is the connection below TLS.
type rawConn struct {
	net.Conn
	room    int  // bytes the server may still send before open
	secured bool // the TLS handshake is done. Owned by dialOnce.
	open    bool // a websocket. Set once, before anybody else has the rawConn.
}

func (c *rawConn) Read(b []byte) (int, error) {
	if c.open {
		return c.Conn.Read(b)
	}
	if c.room == 0 {
		return 0, fmt.Errorf("more than %d bytes and still no answer", handshakeLimit)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.room)])
	c.room -= n
	return n, err
}

// Write hides its error between TLS and websocket: a TLS 1.3 server that
// refuses our certificate may be gone before the request is written, and only
// reading tells the reason.
func (c *rawConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && c.secured && !c.open {
		return len(b), nil
	}
	return n, err
}

func tlsConfig(c *tls.Config) *tls.Config {
	if c == nil {
		c = &tls.Config{}
	}
	c = c.Clone()
	c.NextProtos = []string{"http/1.1"} // a websocket request over h2 is refused
	c.ClientSessionCache = nil
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	return c
}

// plainProxy refuses the proxies that want TLS themselves, which the library
// cannot speak to.
func plainProxy(find func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		proxy, err := find(r)
		if proxy != nil && proxy.Scheme == "https" {
			return nil, fmt.Errorf("proxy %s: https:// proxies are not supported, use one that is reached by http://", proxy.Host)
		}
		return proxy, err
	}
}
