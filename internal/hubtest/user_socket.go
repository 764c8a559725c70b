package hubtest

import (
	"net/http"
	"strings"
)

// userSocket serves an operator's connection, for the console of a device. Any
// token with the prefix of a user token is taken.
func (h *Hub) userSocket(w http.ResponseWriter, r *http.Request) {
	h.wg.Add(1)
	defer h.wg.Done()
	if !upgradable(w, r) {
		return
	}
	q := r.URL.Query()
	if !strings.HasPrefix(q.Get("vsn"), "2.0.") || !strings.HasPrefix(q.Get("token"), "nhu_") {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	h.mu.Lock()
	s := h.newSocket(ws)
	h.unlock()
	s.serve()
}
