package mqtt

import (
	"bytes"
	"log/slog"
	"math"
	"strings"
	"testing"
)

func TestSocketsFitOpenFiles(t *testing.T) {
	for _, tt := range []struct {
		name         string
		c            EmbeddedConfig
		files        int
		sockets, per int
		warns        bool
	}{
		{"no limit", EmbeddedConfig{}, math.MaxInt, 11024, 10000, false},
		{"plenty", EmbeddedConfig{}, 65536, 11024, 10000, false},
		{"no strangers", EmbeddedConfig{}, 2*10000 + 64, 10000, 10000, false},
		{"a shell's", EmbeddedConfig{}, 1024, 480, 480, true},
		{"as asked for", EmbeddedConfig{MaxDevices: 100, MaxSockets: 150, MaxPerIP: 3}, 1024, 150, 3, false},
		{"more than asked for", EmbeddedConfig{MaxDevices: 100, MaxSockets: 90}, 1024, 90, 90, false},
		{"hardly any", EmbeddedConfig{}, 3, 1, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			c := tt.c.withDefaults(tt.files)
			if c.MaxSockets != tt.sockets || c.MaxPerIP != tt.per {
				t.Errorf("%d sockets, %d from one address; want %d, %d", c.MaxSockets, c.MaxPerIP, tt.sockets, tt.per)
			}
			warnOfFiles(slog.New(slog.NewTextHandler(&log, nil)), tt.files, c.MaxDevices)
			if warned := strings.Contains(log.String(), "LimitNOFILE"); warned != tt.warns || strings.Count(log.String(), "\n") > 1 {
				t.Errorf("logged %q", log.String())
			}
		})
	}
	if n := openFiles(); n < 3 {
		t.Errorf("%d open files allowed", n)
	}
}
