package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// maxFile is the largest certificate or key file that is read, bytes.
const maxFile = 64 << 10

// Directory is a [Source] of certificates kept as files: <device>.pem holds the
// certificate, <device>-key.pem its unencrypted private key. Both are read on
// every dial, so a replaced file takes effect with the next one.
type Directory struct{ path string }

var _ Source = (*Directory)(nil)

// NewDirectory is a Directory at path, which is looked at only when asked. It
// cannot hold devices x and x-key both: x-key.pem would be the key of one and
// the certificate of the other.
func NewDirectory(path string) *Directory { return &Directory{path: path} }

// Credentials reads and checks the two files of device.
func (d *Directory) Credentials(_ context.Context, device string) (Credentials, error) {
	if err := checkDevice(device); err != nil {
		return Credentials{}, err
	}
	certFile := filepath.Join(d.path, device+".pem")
	keyFile := filepath.Join(d.path, device+"-key.pem")

	certPEM, certErr := readFile(certFile, 0o777)
	keyPEM, keyErr := readFile(keyFile, 0o600)
	noCert, noKey := errors.Is(certErr, fs.ErrNotExist), errors.Is(keyErr, fs.ErrNotExist)
	switch {
	case noCert && noKey:
		return Credentials{}, fmt.Errorf("identity: device %s: no %s and no %s in %s: %w",
			device, filepath.Base(certFile), filepath.Base(keyFile), d.path, ErrUnknown)
	case noCert:
		certErr = unusable(certFile, "missing, though its key is there", "put the device's certificate here")
	case noKey:
		keyErr = unusable(keyFile, "missing, though the certificate is there", "put the certificate's private key here, mode 0600")
	}
	switch {
	case certErr != nil && keyErr != nil:
		return Credentials{}, fmt.Errorf("identity: device %s: %w; and %w", device, certErr, keyErr)
	case certErr != nil || keyErr != nil:
		return Credentials{}, fmt.Errorf("identity: device %s: %w", device, cmp.Or(certErr, keyErr))
	}
	c, err := parsePair(device, pemFile{certFile, certPEM}, pemFile{keyFile, keyPEM}, time.Now())
	if err != nil {
		return Credentials{}, fmt.Errorf("identity: device %s: %w", device, err)
	}
	return c, nil
}

// readFile reads a small regular file whose mode is within mode.
func readFile(name string, mode fs.FileMode) ([]byte, error) {
	info, err := os.Stat(name) // before opening: to open a FIFO is to wait
	if errors.Is(err, fs.ErrPermission) {
		return nil, unreadable(name)
	} else if err != nil {
		return nil, err
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, unusable(name, "not a regular file", "put a PEM file here")
	case info.Mode().Perm()&^mode != 0:
		return nil, unusable(name, fmt.Sprintf("mode %#o lets others read or change it", info.Mode().Perm()), "chmod 600 it")
	case info.Size() > maxFile:
		return nil, unusable(name, fmt.Sprintf("%d bytes, more than %d", info.Size(), maxFile), "keep only the PEM text of this one device in it")
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrPermission) {
		return nil, unreadable(name)
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func unreadable(name string) error {
	return unusable(name, "permission denied", "let the user the gateway runs as read it")
}

// unusable says in one line which file, what was found and what to do.
func unusable(file, found, remedy string) error {
	return fmt.Errorf("%w: %s: %s; %s", ErrUnusable, file, found, remedy)
}
