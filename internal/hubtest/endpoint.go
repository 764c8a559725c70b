package hubtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"ganglion/internal/hubtest/auth"
)

// elsewhere is where the device endpoint sends requests it has no route for
// (DEVICE_ENDPOINT_REDIRECT's default).
const elsewhere = "https://docs.nerves-hub.org/"

func (h *Hub) deviceEndpoint() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/socket/websocket", h.deviceSocket)
	mux.HandleFunc("/device-socket/websocket", h.deviceSocket)
	alive(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", elsewhere)
		w.WriteHeader(http.StatusMovedPermanently)
	})
	return mux
}

func (h *Hub) webEndpoint() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/device-socket/websocket", h.deviceSocket)
	mux.HandleFunc("/api/socket/websocket", h.userSocket)
	mux.HandleFunc("/firmware/1/", h.download)
	mux.HandleFunc("/uploads/archives/", h.download)
	alive(mux)
	return mux
}

func alive(mux *http.ServeMux) {
	for _, path := range []string{"/status/alive", "/status/_health", "/status/health", "/status/healthy"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "Hello, Friend!") })
	}
}

// upgradable answers 400 to what is no websocket upgrade at all.
func upgradable(w http.ResponseWriter, r *http.Request) bool {
	ok := r.Method == http.MethodGet && websocket.IsWebSocketUpgrade(r) &&
		r.Header.Get("Sec-Websocket-Version") == "13" && r.Header.Get("Sec-Websocket-Key") != ""
	if !ok {
		w.WriteHeader(http.StatusBadRequest)
	}
	return ok
}

// upgrader never compresses: permessage-deflate is answered as if it had not
// been offered. The Origin is checked before.
var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

// deviceSocket accepts one device connection and serves it to its end.
func (h *Hub) deviceSocket(w http.ResponseWriter, r *http.Request) {
	h.wg.Add(1)
	defer h.wg.Done()
	if !upgradable(w, r) {
		return
	}
	id, refusal := h.cfg.Auth.Authenticate(r, time.Now())
	if refusal != nil {
		h.report(id, fmt.Sprintf("connection refused: %d", refusal.Status))
		refusal.ServeHTTP(w, r)
		return
	}
	if refusal := h.refusal(id); refusal != nil {
		refusal.ServeHTTP(w, r)
		return
	}
	h.evict(id) // before 101, as the server broadcasts `disconnect` during the upgrade
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	s := h.accept(ws, id)
	s.serve()
}

func (h *Hub) report(id, text string) {
	h.mu.Lock()
	defer h.unlock()
	h.say(id, text)
}

// refuseCertificate refuses inside the handshake whom Refuse asked for.
func (h *Hub) refuseCertificate(id string, c net.Conn) error {
	switch {
	case h.refuses(id, RefuseShed):
		c.Close()
		return errAsked
	case h.refuses(id, RefuseAlert):
		return errAsked
	}
	return nil
}

var errAsked = errors.New("hubtest: refused as asked")

// refusal is the HTTP answer to the next dial of a device, if it is refused.
func (h *Hub) refusal(id string) *auth.Refusal {
	const reason = "the platform could not be reached to authenticate this device"
	for how, refusal := range map[Refusal]*auth.Refusal{
		Refuse401: {Status: http.StatusUnauthorized},
		Refuse403: {Status: http.StatusForbidden},
		Refuse503: {
			Status: http.StatusServiceUnavailable, Body: reason,
			Header: http.Header{"Nh-Connection-Error-Reason": {reason}},
		},
	} {
		if h.refuses(id, how) {
			return refusal
		}
	}
	return nil
}

// refuses uses up one refusal of the given kind.
func (h *Hub) refuses(id string, how Refusal) bool {
	h.mu.Lock()
	defer h.unlock()
	if !h.take(id, how) {
		return false
	}
	h.say(id, "connection refused as asked: "+string(how))
	return true
}
