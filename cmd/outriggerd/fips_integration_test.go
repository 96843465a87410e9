//go:build integration

package main

import (
	"crypto/tls"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// approved in the environment forbids every algorithm that is not approved.
const approved = "GODEBUG=fips140=only"

// TestFIPS runs outriggerd and the agent of make build-fips, with every algorithm
// forbidden that is not approved, on a real API server: until outriggerd is ready, the
// API server has a pod injected, the pod's token is reviewed and its certificate signed,
// and a real Envoy has its configuration with that.
func TestFIPS(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	must(t, err)
	_, version, found := strings.Cut(string(makefile), "\nFIPS := ")
	if version, _, _ = strings.Cut(version, "\n"); !found || version == "" {
		t.Fatal("the Makefile does not say which module make build-fips uses")
	}
	dir := build(t, "GOFIPS140="+version, ".", "../outrigger-agent")
	for _, name := range []string{"outriggerd", "outrigger-agent"} {
		info, err := exec.CommandContext(t.Context(), "go", "version", "-m", filepath.Join(dir, name)).Output()
		if err != nil || !strings.Contains(string(info), "GOFIPS140="+version) {
			t.Fatalf("%s does not have the module: %v\n%s", name, err, info)
		}
	}
	inNetwork(t, "TestApproved", dir)
}

// TestApproved is the part of TestFIPS that runs in a network namespace. By itself it
// has nothing to test.
func TestApproved(t *testing.T) {
	dir := network(t)
	if dir == "" {
		return
	}
	m := newMesh(t)
	log := m.outriggerd(filepath.Join(dir, "outriggerd"), []string{approved}, "-webhook-address", serviceIP+":443")
	m.eventually("outriggerd is ready", func() error { return answers("http://127.0.0.1:9091/readyz") })

	pod := m.injected(func(*corev1.Pod) {})
	m.agent(dir, approved, pod)
	proxy := m.proxy(func(connected) bool { return true })
	if !strings.HasPrefix(proxy.TLS, "TLS 1.3 ") || !strings.HasPrefix(proxy.Proxy, "shop/"+pod.Name) {
		t.Errorf("outriggerd serves %+v", proxy)
	}
	t.Logf("Envoy's connection: %s", proxy.TLS)
	for curve, works := range map[tls.CurveID]bool{tls.X25519: false, tls.CurveP256: true} {
		conn, err := new(tls.Dialer{Config: &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"}, CurvePreferences: []tls.CurveID{curve},
		}}).DialContext(t.Context(), "tcp", "127.0.0.1:15128")
		if (err == nil) != works {
			t.Errorf("a client that knows %s alone: %v", curve, err)
		}
		if err == nil {
			must(t, conn.Close())
		}
	}
	if text := log.String(); strings.Contains(text, "fips") {
		t.Errorf("outriggerd complains:\n%s", text)
	}
}
