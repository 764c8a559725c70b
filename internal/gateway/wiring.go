package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ganglion/bridge"
	"ganglion/identity"
)

// fleetConfig translates the configuration for the bridge.
func (g *Gateway) fleetConfig() (bridge.Config, error) {
	roots, err := rootsWith("hub.ca_file", g.cfg.Hub.CAFile)
	if err != nil {
		return bridge.Config{}, err
	}
	own, err := g.cfg.Identity.source()
	if err != nil {
		return bridge.Config{}, err
	}
	classes := map[string]bridge.Class{}
	for name, c := range g.cfg.Classes {
		class := bridge.Class{Name: name, Linger: c.Linger, CommandTTL: c.CommandTTL, Reschedule: c.Reschedule,
			Product: c.Product, Platform: c.Platform, Architecture: c.Architecture}
		if c.Identity != nil {
			if class.Identity, err = c.Identity.source(); err != nil {
				return bridge.Config{}, fmt.Errorf("classes.%s.%w", name, err)
			}
		}
		classes[name] = class
	}
	devices := 0
	if e := g.cfg.MQTT.Embedded; e != nil {
		devices = e.MaxDevices
	}
	return bridge.Config{
		URL: g.cfg.Hub.URL, Heartbeat: g.cfg.Hub.Heartbeat, Dials: g.cfg.Hub.DialsPerSecond, Devices: devices, Prefix: g.cfg.MQTT.Prefix,
		TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Identity: own, NetDial: g.opt.NetDial,
		Log: g.log, UserAgent: "ganglion/" + g.opt.Version,
		Class: func(device string) bridge.Class {
			name, _ := g.cfg.Class(device)
			return classes[name]
		},
	}, nil
}

// source is how the devices prove themselves.
func (i Identity) source() (identity.Source, error) {
	if s := i.SharedSecret; s != nil {
		secret, err := identity.NewSharedSecret(s.Key, string(s.Secret))
		if err != nil {
			return nil, fmt.Errorf("identity.shared_secret: %w", err)
		}
		return secret, nil
	}
	return identity.NewDirectory(i.Directory.Path), nil
}

// rootsWith are the system's roots and those of a file; nil means the system's.
func rootsWith(key, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a container without any
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s holds no PEM certificate", key, file)
	}
	return pool, nil
}

// tls is how a foreign broker is met.
func (e *External) tls() (*tls.Config, error) {
	roots, err := rootsWith("mqtt.external.ca_file", e.CAFile)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if e.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("mqtt.external.cert_file: %w", err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c, nil
}

// countBoot returns the number of this start and keeps it in state_dir, so that
// devices can tell one gateway process from the next. Only a directory that is
// none is an error: a full disk is no reason to serve nobody.
func countBoot(dir string) (uint64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("state_dir: %w; choose a directory this user may write", err)
	}
	return nextBoot(filepath.Join(dir, "boot"), time.Now(), slog.Default()), nil
}

// nextBoot is one more than the number in file. Where that cannot be read or
// kept it is the Unix time, which tells this start from others, too.
func nextBoot(file string, now time.Time, log *slog.Logger) uint64 {
	unix := uint64(max(1, now.Unix()))
	var last uint64
	text, err := os.ReadFile(file)
	if err == nil {
		last, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63)
	}
	n := last + 1
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n = unix
		log.Warn("state_dir: the number of the last start cannot be read, going on from the Unix time; delete the file if this comes again",
			"file", file, "err", err)
	}
	if err := writeFile(file, strconv.FormatUint(n, 10)+"\n"); err != nil {
		n = max(n, unix)
		log.Warn("state_dir: the number of this start cannot be kept; free space there, or make it writable for this user",
			"file", file, "err", err)
	}
	return n
}

// writeFile replaces a file such that a power cut leaves the old or the new one.
func writeFile(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when it was renamed, as it should
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close()) // the new name, too
}
