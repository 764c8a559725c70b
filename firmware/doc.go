// Package firmware judges, unpacks and rebuilds firmware images. It knows file formats and keys; it knows nothing of devices, channels or topics.
package firmware
