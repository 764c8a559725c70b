package hubtest

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestDownload(t *testing.T) {
	h := New(Config{})
	h.AddFirmware(Firmware{UUID: "u", Image: []byte("0123456789")})
	h.SetArchive(Archive{UUID: "a", Image: []byte("archive")})
	for _, test := range []struct {
		path, ranges string
		status       int
		body, sent   string
	}{
		{"/firmware/1/u.fw", "", 200, "0123456789", ""},
		{"/firmware/1/u.fw", "bytes=0-", 200, "0123456789", ""},
		{"/firmware/1/u.fw", "bytes=3-", 206, "3456789", "bytes 3-9/10"},
		{"/firmware/1/u.fw", "bytes=3-4", 206, "34", "bytes 3-4/10"},
		{"/firmware/1/u.fw", "bytes=8-99", 206, "89", "bytes 8-9/10"},
		{"/firmware/1/u.fw", "bytes=-3", 206, "789", "bytes 7-9/10"},
		{"/firmware/1/u.fw", "bytes=10-", 200, "0123456789", ""},
		{"/firmware/1/u.fw", "bytes=4-3", 200, "0123456789", ""},
		{"/firmware/1/u.fw", "bytes=1-2,4-5", 200, "0123456789", ""},
		{"/firmware/1/u.fw", "lines=1-2", 200, "0123456789", ""},
		{"/uploads/archives/a.fw", "", 200, "archive", ""},
		{"/firmware/1/u.bin", "", 404, "", ""},
		{"/firmware/1/other.fw", "", 404, "", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, test.path, nil)
		if test.ranges != "" {
			r.Header.Set("Range", test.ranges)
		}
		w := httptest.NewRecorder()
		h.webEndpoint().ServeHTTP(w, r)
		if w.Code != test.status || w.Body.String() != test.body || w.Header().Get("Content-Range") != test.sent {
			t.Errorf("%s %s: %d %q %s", test.path, test.ranges, w.Code, w.Body, w.Header().Get("Content-Range"))
		}
	}
}
