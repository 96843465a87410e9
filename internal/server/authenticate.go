package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// Reasons for which a stream is refused.
const (
	reasonNoCertificate = "no-certificate"
	reasonBadIdentity   = "bad-identity"
	reasonBadNode       = "bad-node"
	reasonOtherPod      = "other-pod"
	reasonUnknownPod    = "unknown-pod"
	reasonLookup        = "lookup-failed"
	reasonNoRequest     = "no-request"
	reasonTooMany       = "too-many"
	reasonStopping      = "stopping"
	reasonEnded         = "certificate-ended"
	reasonRenewed       = "certificate-replaced"
	reasonUntrusted     = "certificate-not-trusted"
)

func refuse(code codes.Code, reason, format string, args ...any) *signing.Refusal {
	return &signing.Refusal{Code: code, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// shown returns what a client has proved to be, by the roots of today.
func (s *Server) shown(ctx context.Context) (vouched, error) {
	info, ok := connectionOf(ctx)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return vouched{}, refuse(codes.Unauthenticated, reasonNoCertificate, "xDS needs a client certificate of the mesh")
	}
	if leaf := info.State.PeerCertificates[0]; !time.Now().Before(leaf.NotAfter) {
		return vouched{}, refuse(codes.Unauthenticated, reasonNoCertificate, "the client certificate ended at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	v, err := s.trust.verify(info.State.PeerCertificates)
	if err != nil {
		return vouched{}, refuse(codes.Unauthenticated, reasonBadIdentity, "verify the client certificate: %w", err)
	}
	return v, nil
}

// callerOf tells those apart who open streams: by the pod that a certificate
// names or, where it names none, by its identity and the address.
func callerOf(ctx context.Context, leaf *x509.Certificate) string {
	if leaf.Subject.SerialNumber != "" || len(leaf.URIs) == 0 {
		return leaf.Subject.SerialNumber
	}
	return leaf.URIs[0].String() + " " + clientAddress(ctx).String()
}

// privacyOf says, for people, how a connection is kept private.
func privacyOf(ctx context.Context) string {
	c, ok := connectionOf(ctx)
	if !ok {
		return ""
	}
	return tls.VersionName(c.State.Version) + " " + c.State.CurveID.String()
}

// bind checks that a certificate was made for the pod that a node id names, and
// returns which. The service account alone is not enough: with it, one replica could
// speak for another. A certificate that names no pod, as those of other issuers,
// passes here, and must pass [Server.located] too.
func bind(v vouched, node string) (mesh.ProxyID, error) {
	id, err := mesh.ParseProxyID(node)
	if err != nil {
		return mesh.ProxyID{}, refuse(codes.InvalidArgument, reasonBadNode, "%w", err)
	}
	if pod := v.leaf().Subject.SerialNumber; pod != "" && pod != id.UID || v.identity.Namespace != id.Namespace {
		return mesh.ProxyID{}, refuse(codes.PermissionDenied, reasonOtherPod,
			"the certificate of %s for the pod with uid %q does not allow speaking for %s", v.identity, pod, id)
	}
	return id, nil
}

// known checks that the pod exists and has that service account, in the current
// snapshot or, where that may be behind, in the cluster.
func (s *Server) known(ctx context.Context, id mesh.ProxyID, identity mesh.Identity) error {
	if w, ok := s.workload(id); ok {
		return sameIdentity(id, identity, w.Identity)
	}
	found, ok, err := s.cfg.Pods.Identity(ctx, id)
	switch {
	case err != nil:
		return refuse(codes.Unavailable, reasonLookup, "look up pod %s: %w", id, err)
	case !ok:
		return refuse(codes.PermissionDenied, reasonUnknownPod, "there is no pod %s with a proxy in the mesh", id)
	default:
		return sameIdentity(id, identity, found)
	}
}

// located checks, for a certificate that names no pod, that the call comes from
// the pod's own address and that the pod has such a certificate.
func (s *Server) located(ctx context.Context, leaf *x509.Certificate, id mesh.ProxyID) error {
	if leaf.Subject.SerialNumber != "" {
		return nil
	}
	address := clientAddress(ctx)
	ok, err := s.cfg.Pods.Located(ctx, id, address)
	switch {
	case err != nil:
		return refuse(codes.Unavailable, reasonLookup, "look up pod %s: %w", id, err)
	case !ok:
		return refuse(codes.PermissionDenied, reasonOtherPod,
			"the certificate names no pod, which is for pods that call from an address of theirs and have the annotation outrigger.dev/identity or an issuer of cert-manager; pod %s is not such a pod at %s", id, address)
	default:
		return nil
	}
}

func sameIdentity(id mesh.ProxyID, certificate, pod mesh.Identity) error {
	if certificate != pod {
		return refuse(codes.PermissionDenied, reasonOtherPod, "pod %s runs as %s, and the certificate is for %s", id, pod, certificate)
	}
	return nil
}

func (s *Server) workload(id mesh.ProxyID) (mesh.Workload, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshot == nil {
		return mesh.Workload{}, false
	}
	return s.snapshot.Workload(id)
}

// reasonOf returns the reason of a refusal, for metrics.
func reasonOf(err error) string {
	if refusal, ok := errors.AsType[*signing.Refusal](err); ok {
		return refusal.Reason
	}
	return "error"
}

// verbosity keeps refusals that anybody can cause at any rate out of the log;
// they are counted all the same.
func verbosity(reason, cheap string) int {
	if reason == cheap {
		return 1
	}
	return 0
}

// clientAddress returns the address of the peer, or the zero address.
func clientAddress(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	return addressOf(p.Addr)
}

// addressOf returns an address without its port, or the zero address.
func addressOf(a net.Addr) netip.Addr {
	address, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{} // a listener without addresses: all clients count as one
	}
	return address.Addr().Unmap()
}
