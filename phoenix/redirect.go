package phoenix

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const maxRedirects = 2

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect is where the answer to a request for u points, or why it is not
// followed. hops is how many redirects were followed before.
func redirect(u *url.URL, answer http.Header, secret bool, hops int) (*url.URL, error) {
	if hops >= maxRedirects {
		return nil, fmt.Errorf("more than %d redirects", maxRedirects)
	}
	location := answer.Get("Location")
	if location == "" {
		return nil, errors.New("redirect without a Location")
	}
	next, err := u.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	switch next.Scheme {
	case "http":
		next.Scheme = "ws"
	case "https":
		next.Scheme = "wss"
	}
	switch {
	case next.Scheme != "ws" && next.Scheme != "wss" || next.Hostname() == "" || next.User != nil:
		err = errors.New("it is no place for a websocket")
	case u.Scheme == "wss" && next.Scheme == "ws":
		err = errors.New("it gives up TLS")
	case secret && !sameHost(u, next):
		err = errors.New("it is another host, which must not learn the secret")
	}
	if err != nil {
		return nil, fmt.Errorf("redirect to %s://%s not followed: %w", next.Scheme, next.Host, err)
	}
	next.Fragment = ""
	return next, nil
}

func sameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "wss":
		return "443"
	}
	return "80"
}

// withVersion asks for the serializer of protocol version 2; a server without
// the parameter assumes 1.0.0 and answers 403.
func withVersion(u *url.URL) *url.URL {
	v := *u
	q := v.Query()
	q.Set("vsn", "2.0.0")
	v.RawQuery = q.Encode()
	return &v
}
