package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/api"
)

// injectFrom is how cert-manager is told whose CA it is to write into an object.
const injectFrom = "cert-manager.io/inject-ca-from"

// applyCRDs creates the kinds that are not there yet, and brings those that this
// command made before up to date.
func (i *installation) applyCRDs(ctx context.Context, c client.Client) error {
	crds, err := chartCRDs(i.namespace)
	if err != nil {
		return err
	}
	for _, crd := range crds {
		crd.Labels = map[string]string{madeBy: releaseName}
		err := c.Create(ctx, crd)
		if apierrors.IsAlreadyExists(err) {
			err = i.updateCRD(ctx, c, crd.DeepCopy())
		} else if err == nil {
			i.step("kind %s: created", crd.Spec.Names.Kind)
		}
		if err != nil {
			return fmt.Errorf("apply CRD %s: %w", crd.Name, err)
		}
	}
	return nil
}

// updateCRD brings a kind up to date if install made it; somebody else's stays, and
// is read in the versions that it serves.
func (i *installation) updateCRD(ctx context.Context, c client.Client, want *apiextensionsv1.CustomResourceDefinition) error {
	have := &apiextensionsv1.CustomResourceDefinition{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(want), have); err != nil {
		return err
	}
	if have.Labels[madeBy] != releaseName {
		i.step("kind %s: there already, left as it is: %s", want.Spec.Names.Kind, serves(have))
		return nil
	}
	before := have.Spec.Conversion
	if from := converter(have); from != nil {
		other, err := i.runsIn(ctx, c, from.Namespace)
		if err != nil {
			return err
		}
		if other {
			i.step("kind %s: converted by the mesh in namespace %s", want.Spec.Names.Kind, from.Namespace)
			want.Spec.Conversion = before
		} else if to := converter(want); to != nil {
			// outriggerd, or cert-manager, has written it; without it old versions
			// would not be served for a while.
			want.Spec.Conversion.Webhook.ClientConfig.CABundle = before.Webhook.ClientConfig.CABundle
		}
	}
	have.Spec = want.Spec
	i.step("kind %s: up to date", want.Spec.Names.Kind)
	return c.Update(ctx, have)
}

// serves says in which versions a CRD of somebody else can be used.
func serves(crd *apiextensionsv1.CustomResourceDefinition) string {
	var versions []string
	status := false
	for _, v := range crd.Spec.Versions {
		if v.Served {
			versions = append(versions, v.Name)
			status = status || v.Subresources != nil && v.Subresources.Status != nil
		}
	}
	text := "it serves " + strings.Join(versions, ", ")
	if !status {
		text += ", without a status"
	}
	return text
}

// runsIn reports whether another namespace has a control plane.
func (i *installation) runsIn(ctx context.Context, c client.Client, namespace string) (bool, error) {
	if namespace == i.namespace {
		return false, nil
	}
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "outriggerd"}, &appsv1.Deployment{})
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("look for a control plane in namespace %s: %w", namespace, err)
	}
	return err == nil, nil
}

// injectCRDs tells cert-manager, where it keeps the CA in the webhook
// configurations, to keep it in the kinds that are converted too.
func (i *installation) injectCRDs(ctx context.Context, c client.Client) error {
	var hooks admissionregistrationv1.ValidatingWebhookConfiguration
	name := "outrigger-" + i.namespace
	if err := c.Get(ctx, client.ObjectKey{Name: name}, &hooks); err != nil {
		return fmt.Errorf("read ValidatingWebhookConfiguration %s: %w", name, err)
	}
	for _, name := range api.Converted() {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := c.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
			return fmt.Errorf("read CRD %s: %w", name, err)
		}
		from := converter(crd)
		if crd.Labels[madeBy] != releaseName || from == nil || from.Namespace != i.namespace || crd.Annotations[injectFrom] == hooks.Annotations[injectFrom] {
			continue
		}
		before := crd.DeepCopy()
		delete(crd.Annotations, injectFrom)
		if source := hooks.Annotations[injectFrom]; source != "" {
			metav1.SetMetaDataAnnotation(&crd.ObjectMeta, injectFrom, source)
		}
		if err := c.Patch(ctx, crd, client.MergeFrom(before)); err != nil {
			return fmt.Errorf("annotate CRD %s: %w", name, err)
		}
	}
	return nil
}

// removeCRDs deletes the kinds that install created and that nobody uses, or all
// that install created.
func (i *installation) removeCRDs(ctx context.Context, c client.Client, all bool) error {
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := c.List(ctx, &crds, client.MatchingLabels{madeBy: releaseName}); err != nil {
		return fmt.Errorf("list kinds: %w", err)
	}
	for _, crd := range crds.Items {
		used, err := countObjects(ctx, c, &crd)
		if err != nil {
			return err
		}
		if used > 0 && !all {
			i.step("kind %s: kept, %d object(s) use it (--kinds removes both)", crd.Spec.Names.Kind, used)
			if err := i.stopConverting(ctx, c, &crd); err != nil {
				return err
			}
			continue
		}
		if err := client.IgnoreNotFound(c.Delete(ctx, &crd)); err != nil {
			return fmt.Errorf("delete CRD %s: %w", crd.Name, err)
		}
		i.step("kind %s: removed", crd.Spec.Names.Kind)
	}
	return nil
}

// stopConverting makes a kind that stays do without outriggerd: it is served in the
// stored shape only.
func (i *installation) stopConverting(ctx context.Context, c client.Client, crd *apiextensionsv1.CustomResourceDefinition) error {
	from := converter(crd)
	if from == nil || from.Namespace != i.namespace {
		return nil
	}
	kinds := api.Kinds()
	k := slices.IndexFunc(kinds, func(k api.Kind) bool { return k.Resource+"."+k.Group == crd.Name })
	if k < 0 {
		return nil
	}
	before := crd.DeepCopy()
	crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
	delete(crd.Annotations, injectFrom)
	for n := range crd.Spec.Versions {
		v := &crd.Spec.Versions[n]
		v.Served = v.Served && slices.Contains(kinds[k].Versions, v.Name)
	}
	if err := c.Patch(ctx, crd, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("take the conversion out of CRD %s: %w", crd.Name, err)
	}
	i.step("kind %s: %s; nobody converts older versions now", crd.Spec.Names.Kind, serves(crd))
	return nil
}

// countObjects counts in the stored version, which needs no conversion.
func countObjects(ctx context.Context, c client.Client, crd *apiextensionsv1.CustomResourceDefinition) (int, error) {
	stored := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Storage })
	objects := &unstructured.UnstructuredList{}
	objects.SetGroupVersionKind(schema.GroupVersionKind{
		Group: crd.Spec.Group, Version: crd.Spec.Versions[stored].Name, Kind: crd.Spec.Names.ListKind,
	})
	if err := c.List(ctx, objects); err != nil {
		return 0, fmt.Errorf("list objects of kind %s: %w", crd.Spec.Names.Kind, err)
	}
	return len(objects.Items), nil
}
