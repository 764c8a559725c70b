package gateway

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The number of a start grows, whatever has become of the file, and what is
// wrong with the file is in the log.
func TestNextBoot(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name, file string // "" is none
		now        time.Time
		want       uint64
		says       string // "" is nothing
	}{
		{"the first", "", now, 1, ""},
		{"the next", "17\n", now, 18, ""},
		{"after one that was damaged", "1800000000\n", now, 1_800_000_001, ""},
		{"damaged", "18\x00\x00", now, 1_800_000_000, "cannot be read"},
		{"cut", "\n", now, 1_800_000_000, "cannot be read"},
		{"too large", "18446744073709551615\n", now, 1_800_000_000, "cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			file := filepath.Join(t.TempDir(), "boot")
			if tt.file != "" {
				if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := slog.New(slog.NewTextHandler(&log, nil))
			if got := nextBoot(file, tt.now, l); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
			if text := log.String(); (tt.says == "") != (text == "") || !strings.Contains(text, tt.says) || tt.says != "" && !strings.Contains(text, file) {
				t.Errorf("logged %q", text)
			}
			log.Reset()
			if got := nextBoot(file, tt.now, l); got != tt.want+1 || log.Len() > 0 {
				t.Errorf("and then %d, logged %q", got, log.String())
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A number that cannot be kept grows, too.
func TestNextBootUnkept(t *testing.T) {
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "gone", "boot")
	got := nextBoot(file, time.Unix(1_800_000_000, 0), slog.New(slog.NewTextHandler(&log, nil)))
	if text := log.String(); got != 1_800_000_000 || !strings.Contains(text, "cannot be kept") || !strings.Contains(text, "free space") || !strings.Contains(text, file) {
		t.Errorf("got %d, logged %q", got, text)
	}
}
