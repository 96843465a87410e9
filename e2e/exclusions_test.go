//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// ports is a list of more ports than one iptables rule can hold, with one more.
func ports(one int) string {
	var list []string
	for port := range 20 {
		list = append(list, fmt.Sprint(2000+port))
	}
	return strings.Join(append(list, fmt.Sprint(one)), ",")
}

// TestExclusionsGoRoundTheProxy calls a server outside the mesh from pods whose
// namespace denies that, unless the call is excluded from the mesh.
func TestExclusionsGoRoundTheProxy(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "bound", inMesh), namespace(t, "outside", outsideMesh)
	annotate(t, ns, "outrigger.dev/egress", "deny")
	servers := all(t, outside, httpEcho("server"), caller("stranger"))
	address := servers[0].Status.PodIP
	plain, byPort, byOSMPort, byRange := caller("plain"), caller("by-port"), caller("by-osm-port"), caller("by-range")
	byPort.annotations = map[string]string{"outrigger.dev/outbound-port-exclusion-list": ports(8080)}
	byOSMPort.annotations = map[string]string{"openservicemesh.io/outbound-port-exclusion-list": ports(8080)}
	byRange.annotations = map[string]string{"outrigger.dev/outbound-ip-range-exclusion-list": address + "/32"}
	pods := all(t, ns, plain, byPort, byOSMPort, byRange)

	url := "http://" + address + ":8080/"
	answers(t, pods[0], url, 403)
	for _, pod := range pods[1:] {
		answersNow(t, pod, url, 200)
	}
	// A range says nothing of other addresses.
	answersNow(t, pods[3], "http://"+servers[1].Status.PodIP+":8080/", 403)
}

// TestAnExcludedInboundPortIsOpenToAll has a stranger speak plain text to ports of
// a server in enforced mode.
func TestAnExcludedInboundPortIsOpenToAll(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	caller("stranger").create(t, outside)
	excluded, strict := httpEcho("excluded"), httpEcho("strict")
	excluded.annotations = map[string]string{"outrigger.dev/inbound-port-exclusion-list": ports(8080)}
	// Excluding another port does not open this one.
	strict.annotations = map[string]string{"outrigger.dev/inbound-port-exclusion-list": ports(8081)}
	pods := all(t, ns, excluded, strict)
	stranger := ready(t, outside, "app=stranger")
	answersNow(t, stranger, "http://"+pods[0].Status.PodIP+":8080/", 200)
	answers(t, stranger, echoURL(ns, "excluded", "/"), 200)
	answersNow(t, stranger, "http://"+pods[1].Status.PodIP+":8080/", 0)
}
