// Package iptables turns redirect settings into the nat rules of a pod: what
// its containers send goes to the sidecar's outbound port, what others send to
// it goes to the inbound port, and what the settings exclude goes its own way.
//
// It is pure. It runs no command and asks the kernel nothing; it writes and
// compares text in the form of iptables-restore and iptables-save. The program
// that applies the text and proves that it works is cmd/outrigger-init; the
// injector makes the Settings.
//
// Start with Settings, which is the contract between the two, then Rules.
package iptables
