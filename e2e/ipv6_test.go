//go:build e2e

package e2e

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// addressOf returns the ClusterIP of a Service in one family.
func addressOf(t *testing.T, namespace, name string, six bool) string {
	t.Helper()
	var svc corev1.Service
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &svc); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(svc.Spec.ClusterIPs, func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err == nil && a.Is6() == six
	})
	if i < 0 {
		t.Fatalf("Service %s/%s has %v: the cluster gives it no address of the family (IPv6: %v)", namespace, name, svc.Spec.ClusterIPs, six)
	}
	return svc.Spec.ClusterIPs[i]
}

// TestIPv6IsHeldToTheSamePolicy calls Services of both families, and of IPv6 alone,
// by their addresses and by name, and a pod by its IPv6 address without a proxy.
func TestIPv6IsHeldToTheSamePolicy(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	pods := all(t, ns, httpEcho("server"), banner("db"), caller("client"), caller("stranger"))
	outsider := caller("outsider").run(t, outside)
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: six}
spec:
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv6]
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {namespace: %[1]s, name: six-db}
spec:
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv6]
  selector: {app: db}
  ports: [{name: tcp, port: 9000}]
`, ns)
	allow(t, ns, "server", ns+"/client")
	allowTCP(t, ns, "db", "9000", ns+"/client")
	from, stranger := pods[2], pods[3]
	for way, url := range map[string]string{
		"both families by IPv4": "http://" + addressOf(t, ns, "both", false) + "/",
		"both families by IPv6": "http://[" + addressOf(t, ns, "both", true) + "]/",
		"IPv6 alone by address": "http://[" + addressOf(t, ns, "six", true) + "]/",
		"IPv6 alone by name":    "http://" + service(ns, "six") + "/",
	} {
		if load := consecutive(t, from, url, "200", 5); load.Identities["server"] != 5 {
			t.Errorf("%s: %v answered; want server", way, load.Identities)
		}
		consecutive(t, stranger, url, "403", 5)
	}
	db := net.JoinHostPort(addressOf(t, ns, "six-db", true), "9000")
	opens(t, from, db, bannerText)
	closed(t, stranger, db)
	// The pod's own address of IPv6 is redirected too: without mutual TLS nothing
	// comes through.
	six := slices.IndexFunc(pods[0].Status.PodIPs, func(ip corev1.PodIP) bool { return netip.MustParseAddr(ip.IP).Is6() })
	if six < 0 {
		t.Fatalf("the server's pod has %v: no IPv6", pods[0].Status.PodIPs)
	}
	closed(t, outsider, net.JoinHostPort(pods[0].Status.PodIPs[six].IP, "8080"))
	consecutive(t, outsider, "http://"+net.JoinHostPort(pods[0].Status.PodIPs[six].IP, "8080")+"/", "error", 5)
	logged(t, pods[0], map[string]string{"direction": "inbound", "decision": "denied", "destination": pods[0].Status.PodIPs[six].IP})
}
