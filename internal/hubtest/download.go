package hubtest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// download serves firmware and archives as NervesHub's local backend does: a
// single range gets 206, one that covers the whole file or cannot be met gets
// 200, and If-Range is ignored.
func (h *Hub) download(w http.ResponseWriter, r *http.Request) {
	image, kind, ok := h.file(r.URL.Path)
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	header := w.Header()
	header.Set("Accept-Ranges", "bytes")
	header.Set("Cache-Control", "public")
	header.Set("Content-Type", kind)
	header.Set("Etag", fmt.Sprintf("%q", checksum(image)[:7]))
	status, body := http.StatusOK, image
	if from, to, ok := byteRange(r.Header.Get("Range"), len(image)); ok {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(image)))
		status, body = http.StatusPartialContent, image[from:to+1]
	}
	header.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		w.Write(body)
	}
}

func (h *Hub) file(path string) (image []byte, kind string, ok bool) {
	h.mu.Lock()
	defer h.unlock()
	name := path[strings.LastIndexByte(path, '/')+1:]
	uuid, ext, _ := strings.Cut(name, ".")
	if a := h.archives[uuid]; a != nil && a.path() == path {
		return a.Image, "application/octet-stream", true
	}
	f := h.firmware[uuid]
	if f == nil || f.path() != path {
		return nil, "", false
	}
	if ext == "fw" {
		return f.Image, "application/fwup", true
	}
	return f.Image, "application/octet-stream", true
}

// byteRange reads a single range and reports whether it is a proper part of
// the file; from and to are inclusive.
func byteRange(header string, size int) (from, to int, ok bool) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return 0, 0, false
	}
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return 0, 0, false
	}
	from, to = 0, size-1
	switch {
	case first == "": // the last n bytes
		if !number(last, &to) || to > size {
			return 0, 0, false
		}
		from, to = size-to, size-1
	case !number(first, &from) || last != "" && !number(last, &to):
		return 0, 0, false
	}
	to = min(to, size-1)
	if from > to || to-from+1 == size {
		return 0, 0, false
	}
	return from, to, true
}

// number reads a decimal without a sign.
func number(text string, n *int) bool {
	v, err := strconv.ParseUint(text, 10, 31)
	*n = int(v)
	return err == nil
}
