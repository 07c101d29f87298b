"""Modules for tests of the import: branches, a fan-out, a skip, and things that cannot be cut."""

from __future__ import annotations

import torch
from torch import nn


class TwoTowers(nn.Module):
    """Token ids and features through towers of their own, joined; the features' first layer also skips to the end."""

    def __init__(self, width: int = 16, tokens: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(30, width)
        self.place = nn.Parameter(torch.zeros(tokens, width))
        self.text = nn.ModuleList([nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
                                   for _ in range(2)])
        self.image = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(3)])
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.place
        for layer in self.text:
            x = layer(x)
        first = self.image[0](features)
        y = self.image[2](self.image[1](first))
        scale = torch.ones(y.shape[0], 1) * 0.5
        return self.head(torch.cat([x.mean(1), y, first * scale], -1))


def two_towers() -> nn.Module:
    return TwoTowers()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(30, 8), nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.middle(self.table(ids)), self.table.weight)


def tied() -> nn.Module:
    return Tied()


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)).square().sum()


def scalar() -> nn.Module:
    return Scalar()


class Many(nn.Module):
    """The paper's multi-modal transformer: 4 branches of 8 layers."""

    def __init__(self, branches: int = 4, layers: int = 8, width: int = 1024) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            nn.Sequential(*(nn.TransformerEncoderLayer(width, 16, 4 * width, dropout=0.0, batch_first=True)
                            for _ in range(layers))) for _ in range(branches)])

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch, x in zip(self.branches, inputs, strict=True)], -1)


def many() -> nn.Module:
    return Many()


def nothing() -> None:
    return None
