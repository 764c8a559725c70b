package device

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	maxImage     = 64 << 20 // bytes of flash
	readSize     = 4 << 10  // bytes taken from HTTP at once
	pauseAhead   = 20 * time.Millisecond
	silence      = 60 * time.Second // without a byte, an attempt is given up
	maxTries     = 10               // attempts in a row without a byte gained
	retryFirst   = time.Second
	retryCeiling = 15 * time.Second
)

var (
	// errImage means that what was fetched is not what was offered.
	errImage = errors.New("wrong image")
	// errRefused means that the server will not hand the image out at this URL.
	errRefused = errors.New("download refused")
	// errPowerCut ends a transfer at its cutAt.
	errPowerCut = errors.New("power cut")
)

// An image is what of an offer is in flash. It outlives reboots. The bytes
// themselves are not kept, only their count and digest.
type image struct {
	key  string
	at   int64 // bytes written
	sum  hash.Hash
	size int64 // bytes in all, 0 while unknown
}

func newImage(o offer) *image { return &image{key: o.key(), sum: sha256.New(), size: o.size} }

func (i *image) erase(size int64) { i.at, i.size = 0, size; i.sum.Reset() }

func (i *image) digest() string { return hex.EncodeToString(i.sum.Sum(nil)) }

// A transfer fetches one image. Its goroutine owns image until done delivers.
type transfer struct {
	offer  offer
	image  *image
	client *http.Client
	speed  int            // bytes/s into flash
	cutAt  int64          // fail with errPowerCut at this offset; 0: never
	urls   chan string    // a fresher URL for the next attempt; holds one, newest wins
	marks  chan int       // percent in flash; holds one, newest wins
	breaks chan fetchFail // attempts that broke off; holds one, newest wins
	done   chan error     // holds one; nil: the image is complete and verified
	cancel context.CancelFunc
	last   int // percent of the last progress published. Owned by the device's loop.
}

type fetchFail struct {
	at  int64
	err error
}

func newTransfer(o offer, i *image, client *http.Client, speed int) *transfer {
	return &transfer{
		offer: o, image: i, client: client, speed: speed,
		urls: make(chan string, 1), marks: make(chan int, 1),
		breaks: make(chan fetchFail, 1), done: make(chan error, 1),
	}
}

// newest puts v into a channel that holds one value, in place of one that was
// not taken yet. Only one goroutine may send to ch.
func newest[T any](ch chan T, v T) {
	select {
	case <-ch:
	default:
	}
	ch <- v
}

// run fetches until the image is complete, ctx ends, or going on is pointless.
func (t *transfer) run(ctx context.Context) error {
	source, spoiled := t.offer.url, false
	for failed := 0; ; {
		before := t.image.at
		err := t.attempt(ctx, source)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errPowerCut):
			return err
		case errors.Is(err, errRefused) && len(t.urls) == 0:
			return err
		case errors.Is(err, errImage):
			t.image.erase(t.offer.size)
			if before == 0 || spoiled {
				return err
			}
			spoiled = true // once: what an earlier attempt left may be to blame
		case t.image.at > before:
			failed = 0
		}
		if failed++; failed > maxTries {
			return fmt.Errorf("%d attempts without a byte: %w", maxTries, err)
		}
		newest(t.breaks, fetchFail{t.image.at, err})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case source = <-t.urls:
		case <-time.After(min(retryFirst<<(failed-1), retryCeiling)):
		}
	}
}

// attempt asks once for what is missing and verifies the whole.
func (t *transfer) attempt(ctx context.Context, source string) error {
	if t.image.size == 0 || t.image.at < t.image.size {
		if err := t.get(ctx, source); err != nil {
			return err
		}
	}
	switch sum := t.image.digest(); {
	case t.offer.size != 0 && t.image.at != t.offer.size:
		return fmt.Errorf("%w: %d bytes instead of %d", errImage, t.image.at, t.offer.size)
	case t.offer.sha256 != "" && t.offer.sha256 != sum:
		return fmt.Errorf("%w: sha256 is %.8s…, not %.8s…", errImage, sum, t.offer.sha256)
	}
	return nil
}

func (t *transfer) get(ctx context.Context, source string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return errRefused // a URL that the offer's check let pass
	}
	req.Header.Set("Accept-Encoding", "identity") // a range is of the file as it is
	if t.image.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", t.image.at))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		// The text of a url.Error holds the URL, and that a signature.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("get: %w", err)
	}
	defer resp.Body.Close()
	if err := t.accept(resp); err != nil {
		return err
	}
	return t.flash(ctx, resp.Body, func() { watchdog.Reset(silence) })
}

// accept decides by status and headers whether the body goes on where the
// image ends, or begins it anew.
func (t *transfer) accept(resp *http.Response) error {
	switch {
	case resp.StatusCode == http.StatusOK:
		t.image.erase(t.offer.size) // a server may ignore Range (RFC 9110 §14.2)
		if t.image.size == 0 {
			t.image.size = max(resp.ContentLength, 0)
		}
		return nil
	case resp.StatusCode == http.StatusPartialContent:
		var first int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first); err != nil || first != t.image.at {
			return fmt.Errorf("%w: asked from %d on, got %q", errImage, t.image.at, resp.Header.Get("Content-Range"))
		}
		return nil
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: nothing from %d on", errImage, t.image.at)
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("get: %s", resp.Status)
	}
	return fmt.Errorf("%w: %s", errRefused, resp.Status)
}

// flash writes the body at the speed of the flash. alive is called for every
// piece.
func (t *transfer) flash(ctx context.Context, body io.Reader, alive func()) error {
	began, from := time.Now(), t.image.at
	buf := make([]byte, readSize)
	for {
		n, err := body.Read(buf)
		alive()
		limit := int64(maxImage)
		if t.image.size > 0 {
			limit = t.image.size
		}
		if t.image.at+int64(n) > limit {
			return fmt.Errorf("%w: more than %d bytes", errImage, limit)
		}
		t.image.sum.Write(buf[:n])
		t.image.at += int64(n)
		if t.image.size > 0 && n > 0 {
			newest(t.marks, int(100*t.image.at/t.image.size))
		}
		switch {
		case t.cutAt > 0 && t.image.at >= t.cutAt:
			return errPowerCut
		case err == io.EOF && t.image.at < t.image.size:
			return fmt.Errorf("get: %w", io.ErrUnexpectedEOF)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("get: %w", err)
		}
		if err := pause(ctx, time.Until(began.Add(flashTime(t.image.at-from, t.speed)))); err != nil {
			return err
		}
	}
}

func flashTime(bytes int64, speed int) time.Duration {
	return time.Duration(float64(bytes) / float64(speed) * float64(time.Second))
}

// pause waits for d, unless that is too short to be worth a timer.
func pause(ctx context.Context, d time.Duration) error {
	if d < pauseAhead {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
