package phoenix_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"ganglion/phoenix"
)

func TestRedirect(t *testing.T) {
	secret := http.Header{"X-Nh-Key": {"hush"}}
	// A route is what the server answers at scheme, host and path: a status and
	// a Location. Whatever is no route is a websocket.
	type routes map[string]string
	chain := routes{
		"https hub.test /socket/websocket": "301 /a",
		"https hub.test /a":                "302 https://hub.test/b?x=1",
		"https hub.test /b":                "307 wss://hub.test:443/c#fragment",
	}
	from := func(start string) routes { // the chain from /a or /b on
		return routes{"https hub.test /socket/websocket": "308 " + start, "https hub.test /a": chain["https hub.test /a"], "https hub.test /b": chain["https hub.test /b"]}
	}
	to := func(location string) routes { return routes{"https hub.test /socket/websocket": "301 " + location} }
	for name, tt := range map[string]struct {
		url    string
		header http.Header
		routes routes
		at     string // where it ends: the last request the server saw
		err    string // in the DialError
	}{
		"none":                         {hubURL, secret, nil, "https hub.test /socket/websocket", ""},
		"one":                          {hubURL, secret, to("wss://HUB.test/c"), "https HUB.test /c", ""},
		"two":                          {hubURL, secret, from("/b"), "https hub.test:443 /c", ""},
		"three":                        {hubURL, nil, chain, "https hub.test /b", "more than 2 redirects"},
		"three, all elsewhere":         {hubURL, nil, from("/a"), "https hub.test /b", "more than 2 redirects"},
		"relative":                     {hubURL, secret, to("../c"), "https hub.test /c", ""},
		"other host":                   {hubURL, nil, to("https://other.test/c"), "https other.test /c", ""},
		"other host, secret":           {hubURL, secret, to("https://other.test/c"), "https hub.test /socket/websocket", "must not learn the secret"},
		"other port, secret":           {hubURL, secret, to("https://hub.test:8443/c"), "https hub.test /socket/websocket", "must not learn the secret"},
		"other host, no scheme":        {hubURL, secret, to("//other.test/c"), "https hub.test /socket/websocket", "must not learn the secret"},
		"without TLS":                  {hubURL, nil, to("http://hub.test/c"), "https hub.test /socket/websocket", "gives up TLS"},
		"without TLS, as a websocket":  {hubURL, nil, to("ws://hub.test/c"), "https hub.test /socket/websocket", "gives up TLS"},
		"to TLS":                       {"ws://hub.test/x", nil, routes{"http hub.test /x": "301 https://hub.test/c"}, "https hub.test /c", ""},
		"plain":                        {"ws://hub.test/x", secret, routes{"http hub.test /x": "303 http://hub.test:80/c"}, "http hub.test:80 /c", ""},
		"no Location":                  {hubURL, nil, to(""), "https hub.test /socket/websocket", "without a Location"},
		"no URL":                       {hubURL, nil, to("https://%zz/"), "https hub.test /socket/websocket", "invalid URL escape"},
		"no websocket":                 {hubURL, nil, to("ftp://hub.test/c"), "https hub.test /socket/websocket", "no place for a websocket"},
		"credentials":                  {hubURL, nil, to("https://me:hush@hub.test/c"), "https hub.test /socket/websocket", "no place for a websocket"},
		"a 3xx that is not a redirect": {hubURL, nil, routes{"https hub.test /socket/websocket": "304 /c"}, "https hub.test /socket/websocket", "bad handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				at, stray := "", ""
				handler := func(w http.ResponseWriter, r *http.Request) {
					at = "http"
					if r.TLS != nil {
						at = "https"
					}
					at += " " + r.Host + " " + r.URL.Path
					if v := r.URL.Query()["vsn"]; len(v) != 1 || v[0] != "2.0.0" || r.Header.Get("X-Nh-Key") != tt.header.Get("X-Nh-Key") {
						stray = r.URL.String()
					}
					status, location, ok := strings.Cut(tt.routes[at], " ")
					if !ok {
						talk(echo)(w, r)
						return
					}
					if location != "" {
						w.Header().Set("Location", location)
					}
					w.WriteHeader(map[string]int{"301": 301, "302": 302, "303": 303, "304": 304, "307": 307, "308": 308}[status])
				}
				secure, plain := serve(t, serverTLS(), handler), serve(t, nil, handler)
				o := options(secure)
				o.Header = tt.header
				o.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					if strings.HasSuffix(addr, ":80") {
						return plain.Dial(ctx, network, addr)
					}
					return secure.Dial(ctx, network, addr)
				}
				c, err := phoenix.Dial(t.Context(), tt.url, o)
				if at != tt.at || stray != "" {
					t.Errorf("ended at %q, want %q; stray %q", at, tt.at, stray)
				}
				if tt.err == "" {
					if err != nil {
						t.Fatal(err)
					}
					c.Close()
					return
				}
				e, ok := errors.AsType[*phoenix.DialError](err)
				if !ok || e.Status/100 != 3 || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "hush") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
