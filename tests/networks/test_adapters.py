"""Frozen encoders in other people's OOD detectors."""

import pytest
import torch
import torch.nn.functional as F
from commands import CE
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import datasets
import evaluation
import hubconf
from datasets import augmentation
from networks.adapters import OpenOODNet, UnitFeatures


class Tiny(nn.Module):
    dim = 4

    def forward(self, images):
        return images.flatten(1)[:, :4]


def test_openood_gets_logits_features_and_the_last_layer():
    fc, images = nn.Linear(4, 3), torch.randn(5, 3, 2, 2)
    net, x = OpenOODNet(Tiny(), fc), images.flatten(1)[:, :4]
    assert torch.equal(net(images), fc(x))
    logits, feature = net(images, return_feature=True)
    assert torch.equal(logits, fc(x))
    assert torch.equal(feature, x)
    assert torch.equal(net(images, return_feature_list=True)[1][-1], x)
    torch.testing.assert_close(net.forward_threshold(images, 0.1), fc(x.clip(max=0.1)))
    weight, bias = net.get_fc()
    assert (weight.shape, bias.shape, net.feature_size, net.get_fc_layer()) == ((3, 4), (3,), 4, fc)


def test_a_contrastive_encoder_has_cosines_to_its_class_means_for_logits():
    images, means = torch.randn(5, 3, 2, 2), torch.randn(3, 4)
    logits, feature = OpenOODNet.of_means(Tiny(), means)(images, return_feature=True)
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(5))
    want = F.cosine_similarity(images.flatten(1)[:, None, :4], means[None], dim=2)
    torch.testing.assert_close(logits, want)


@torch.no_grad()
def test_a_cross_entropy_model_comes_with_its_layer_and_a_contrastive_one_without(digits):
    model = hubconf.classifier(digits / CE)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(model(images), model.fc(hubconf.encoder(digits / CE)(images)))
    with pytest.raises(ValueError, match="holds no linear classifier"):
        hubconf.classifier(digits / "random")


def loaders():
    """Training digits of eight classes, and test images of these and of the other two, as pytorch-ood marks them."""
    train, test = datasets.build_pair("digits", which=datasets.Selection(exclude=("4", "8")))
    outliers = datasets.build_outliers("digits", split="all", classes=("4", "8"))
    transform = augmentation.evaluation(8, datasets.spec("digits").mean, datasets.spec("digits").std, True)
    parts = []
    for data in (train, test, outliers):
        data.transform = transform
        images = torch.stack([data[i][0] for i in range(len(data))])
        parts.append((images, data.labels if data is not outliers else torch.full((len(data),), -1)))
    return parts


@pytest.mark.slow
@torch.no_grad()
def test_the_detectors_of_pytorch_ood_find_what_ours_find(digits):
    from pytorch_ood.detector import KNN, RMD, EnergyBased, Mahalanobis, ReAct, ViM

    train, test, outliers = loaders()
    encoder = UnitFeatures(hubconf.encoder(digits / CE)).eval()

    def theirs(detector):
        detector.fit(DataLoader(TensorDataset(*train), batch_size=200))
        return evaluation.ood_metrics(-detector.predict(test[0]), -detector.predict(outliers[0]))["AUROC"]

    x, inside, outside = (encoder(part[0]).double() for part in (train, test, outliers))
    ours = {
        "mahalanobis": [evaluation.mahalanobis_scores(x, train[1], part) for part in (inside, outside)],
        "rmds": [evaluation.relative_mahalanobis_scores(x, train[1], part) for part in (inside, outside)],
        "knn": [evaluation.knn_scores(x, part, 50) for part in (inside, outside)],
    }
    auroc = {name: evaluation.ood_metrics(*scores)["AUROC"] for name, scores in ours.items()}
    assert theirs(KNN(encoder, k=50).to("cpu")) == pytest.approx(auroc["knn"], abs=1e-6)
    # their ridge is of the sum over the images, ours of its mean, and they compute in float32
    assert theirs(Mahalanobis(encoder).to("cpu")) == pytest.approx(auroc["mahalanobis"], abs=2e-3)
    assert theirs(RMD(encoder).to("cpu")) == pytest.approx(auroc["rmds"], abs=2e-3)
    model = hubconf.classifier(digits / CE)
    logits = [model(part[0]) for part in (test, outliers)]
    energy = evaluation.ood_metrics(*(evaluation.energy_scores(part) for part in logits))["AUROC"]
    assert theirs(EnergyBased(model).to("cpu")) == pytest.approx(energy, abs=1e-6)
    for detector in (
        ViM(model.encoder, d=32, w=model.fc.weight, b=model.fc.bias).to("cpu"),
        ReAct(model.encoder, model.fc, threshold=1.0).to("cpu"),
    ):
        assert 0.5 < theirs(detector) <= 1
